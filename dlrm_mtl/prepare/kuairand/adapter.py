"""KuaiRand-Pure: raw CSV files to a data set split by day.

A row's features contain nothing from that row's day or later, except facts known when the video is shown (who, what, when,
where). :mod:`dlrm_mtl.prepare.kuairand.rates` explains how label rates satisfy this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.ids import frequency_vocabulary, one_row
from dlrm_mtl.prepare.common.io import Progress, connect, find_inputs, output_folder, vocabularies_table, write_parquet
from dlrm_mtl.prepare.common.preparation import sparse_features
from dlrm_mtl.prepare.kuairand import rates
from dlrm_mtl.prepare.kuairand.columns import (
    AMOUNTS,
    CATEGORIES,
    DENSE,
    HISTORIES,
    HISTORY_LENGTH,
    MANY_VALUED,
    SIGNALS,
    join,
    schema,
)
from dlrm_mtl.prepare.kuairand.tables import FILES, load
from dlrm_mtl.prepare.kuairand.text import CITATION, DESCRIPTION, LICENCE, NOTICE, README

SPLITS = {"train": (20220425, 20220505), "validation": (20220506, 20220506), "test": (20220507, 20220508)}
ROW_GROUP_ROWS = 32768


@register("adapter", "kuairand")
def prepare(input: Path, output: Path, progress: Progress = lambda what, done: None) -> None:
    """KuaiRand-Pure: short-video exposures with clicks, likes and long views, split by day.

    Writes the data set made from the CSV files in ``input`` to the folder ``output``, which must not exist or be empty.
    Raises :class:`UserError` if an input is missing or malformed, or if ``output`` cannot be written.
    """
    inputs = find_inputs(input, FILES)
    with output_folder(output) as folder, connect() as connection:
        progress("reading the CSV files", 0.0)
        load(connection, inputs)
        progress("numbering categories", 0.2)
        queries = {name: query for name, (_, query) in CATEGORIES.items()}
        queries["tag"] = "SELECT unnest(tags) FROM videos"
        sizes = {name: frequency_vocabulary(connection, f"vocabulary_{name}", query) for name, query in queries.items()}
        for name, table in (("user_id", "users"), ("video_id", "videos")):
            sizes[name] = one_row(connection, f"SELECT max({name}) + 2 FROM {table}")[0]
        progress("collecting label rates of earlier days", 0.3)
        rates.create(connection)
        progress("joining", 0.5)
        rows = connection.sql(join()).to_arrow_table().cast(schema())
        days = rows.column("date")
        splits = {}
        for position, (split, (first, last)) in enumerate(SPLITS.items()):
            progress(f"writing {split}", 0.6 + 0.1 * position)
            within = pa.compute.and_(pa.compute.greater_equal(days, first), pa.compute.less_equal(days, last))
            part = rows.filter(within)
            path = folder / split / "part-00000.parquet"
            write_parquet(part, path, row_group_rows=ROW_GROUP_ROWS, many_valued=MANY_VALUED)
            splits[split] = SplitSpec(
                folder=split, rows=part.num_rows, description=f"exposures of {_days(first, last)}"
            )
        vocabularies = vocabularies_table(connection, list(queries))
        pq.write_table(vocabularies, folder / "vocabularies.parquet", compression="zstd", compression_level=19)
        progress("describing", 0.9)
        describe(folder, _specification(sizes, splits))
        counts = {name: split.rows for name, split in splits.items()}
        (folder / "README.md").write_text(README.format(**counts, history=HISTORY_LENGTH), encoding="utf-8")
        (folder / "LICENSE.md").write_text(NOTICE, encoding="utf-8")
    progress("done", 1.0)


def _specification(sizes: Mapping[str, int], splits: dict[str, SplitSpec]) -> DatasetSpec:
    first = ["user_id", "video_id", "author", "music", "tag", "tab", "hour"]
    features = sparse_features(sizes, [*first, *(name for name in CATEGORIES if name not in first)])
    features += [
        FeatureSpec(name=name, kind="sequence", vocabulary="video_id", description=description)
        for name, description in HISTORIES.items()
    ]
    features += [FeatureSpec(name=name, kind="dense") for name in DENSE]
    features += [FeatureSpec(name=name, kind="dense", description=text) for name, text in rates.descriptions().items()]
    labels = [LabelSpec(name=name) for name in SIGNALS]
    labels += [LabelSpec(name=name, kind="real") for name in AMOUNTS]
    return DatasetSpec(
        name="kuairand_pure",
        description=DESCRIPTION,
        licence=LICENCE,
        citation=CITATION,
        splits=splits,
        features=features,
        labels=labels,
    )


def _days(first: int, last: int) -> str:
    texts = [f"{day // 10000}-{day // 100 % 100:02d}-{day % 100:02d}" for day in (first, last)]
    return texts[0] if first == last else f"{texts[0]} to {texts[1]}"
