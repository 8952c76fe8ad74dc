"""AliExpress search logs: impressions with clicks and purchases from several countries.

The test file is the published later part of the log. There is no published validation split. It is cut from the training
file, so that no choice depends on test rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer

from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec
from dlrm_mtl.prepare.aliexpress.files import CATEGORIES, LABELS, NUMBERS, load
from dlrm_mtl.prepare.common.duck import Memory, Threads
from dlrm_mtl.prepare.common.examples import Examples, write_examples
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.prepare.common.preparation import (
    comma_separated,
    preparing,
    refuse_rows,
    require_training,
    sparse_features,
    splits_in_folders,
)
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.common.vocabularies import Categorical, HashSize, MinCount, Numbering

LICENCE = "published by Alibaba for research; see https://tianchi.aliyun.com/dataset/74690"
CITATION = """\
Pengcheng Li, Runze Li, Qing Da, An-Xiang Zeng, Lijun Zhang. Improving Multi-Scenario Learning to Rank in E-commerce by \
Exploiting Task Relationships in the Label Space. CIKM 2020. https://doi.org/10.1145/3340531.3412713"""


@register("adapter", "aliexpress")
def prepare(
    input: Path,
    output: Path,
    *,
    countries: Annotated[
        str,
        typer.Option(
            help="Countries, comma separated, as in NL,ES: folders AliExpress_NL, ...; default: files in the input."
        ),
    ] = "",
    validation: Annotated[
        Literal["last", "random"],
        typer.Option(help="Validation rows: the last of each training file, or random searches of it."),
    ] = "last",
    validation_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the training file.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of random validation searches.")] = 0,
    min_count: MinCount = 2,
    hash_size: HashSize = None,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """AliExpress search logs (layout of MTReclib): clicks and purchases, one or several countries.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    require_training("aliexpress", validation_share=validation_share)
    names = comma_separated(countries)
    folders = {name: input / f"AliExpress_{name}" for name in names} or {"": input}
    with preparing(output, progress, memory, threads) as preparation:
        connection = preparation.connection
        last = []
        for position, (country, place) in enumerate(folders.items()):
            progress(f"reading {country}".strip(), 0.4 * position / len(folders))
            cut, end = load(connection, place, position + 1, validation_share)
            last.append(f"(rowid >= {cut} AND rowid < {end})")
        for name in LABELS:
            what = f"a {name} other than 0 and 1; download the files again."
            refuse_rows(connection, "rows", f"{name} IS NULL OR {name} NOT IN (0, 1)", input, what)
        held, how = " OR ".join(last), "the last rows"
        if validation == "random":
            shares = {"1": validation_share, "0": 1 - validation_share}
            held = random_split("country || ':' || search_id", shares, seed=seed) + " = '1'"
            how = f"random searches (seed {seed})"
        others: dict[str, tuple[str, pa.DataType]] = {"search_id": ("search_id", pa.int64())}
        others |= {name: (name, pa.int8()) for name in LABELS}
        others |= {"country": ("country", pa.int32())} if names else {}
        others |= {name: (name, pa.float32()) for name in NUMBERS}
        splits = {"train": f"NOT test AND NOT ({held})", "validation": f"NOT test AND ({held})", "test": "test"}
        examples = Examples(splits, others, [Categorical(name, name) for name in CATEGORIES])
        remedy = "set --validation-share so that it and training have rows"
        sizes = write_examples(preparation, examples, Numbering(min_count, hash_size), begin=0.4, remedy=remedy)
        preparation.describe(_specification(names, sizes, f"{how} of the published training file"), 0.9)


def _specification(names: list[str], sizes: dict[str, int], validation: str) -> DatasetSpec:
    features = []
    if names:
        numbers = ", ".join(f"{number}: {name}" for number, name in enumerate(names, 1))
        features.append(FeatureSpec(name="country", kind="sparse", vocabulary_size=len(names) + 1, description=numbers))
    features += sparse_features(sizes, CATEGORIES)
    features += [FeatureSpec(name=name, kind="dense") for name in NUMBERS]
    where = f" ({', '.join(names)})" if names else ""
    texts = {
        "train": "the published training file without validation rows",
        "validation": validation,
        "test": "the published test file, later in time",
    }
    return DatasetSpec(
        name="aliexpress",
        description=f"AliExpress search impressions{where} in the order of the files.",
        licence=LICENCE,
        citation=CITATION,
        splits=splits_in_folders(texts),
        features=features,
        labels=[
            LabelSpec(name="click"),
            LabelSpec(name="conversion", description="over all impressions: 1 only where there was a click (CTCVR)"),
        ],
    )
