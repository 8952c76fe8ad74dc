"""Ali-CCP: impressions of Taobao's recommender with clicks and conversions, joined out of core with the users' features.

Four files without a header, fields separated by commas: ``sample_skeleton_train.csv`` and ``..._test.csv`` (sample id, click,
conversion, index of common features, number of features, features) and ``common_features_train.csv`` and ``..._test.csv``
(index, number of features, features). Features are entries of field, id and value, separated by the characters 2 and 3, with
the character 1 between entries; a field may have several.

The common features are turned into ids once and laid out in files; the impressions, many for each, stream by in their order
and pick theirs. The entries' values, which are weights, are left out. A conversion is null where there was no click, as it
could not happen there.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import duckdb
import numpy as np
import pyarrow as pa
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.duck import (
    SPLITS,
    Memory,
    SplitWriter,
    Threads,
    find_files,
    insert_csv,
    one_row,
    refuse_empty,
    scratch,
    stream,
    workspace,
)
from dlrm_mtl.prepare.common.io import Progress, output_folder
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.common.vocabularies import Categorical, MinCount, Numbering, Vocabularies

COMMON = ("101", "109_14", "110_14", "127_14", "150_14", "121", "122", "124", "125", "126", "127", "128", "129")
"""Fields of the common features: the user, what they clicked and bought before, and who they are."""
OWN = ("205", "206", "207", "210", "216", "301", "508", "509", "702", "853")
"""Fields of an impression: item, category, shop, intentions, brand, place, and the user's history with them."""

LICENCE = "published by Alibaba for research; see https://tianchi.aliyun.com/dataset/408"
CITATION = """\
Xiao Ma, Liqin Zhao, Guan Huang, Zhi Wang, Zelin Hu, Xiaoqiang Zhu, Kun Gai. Entire Space Multi-Task Model: An Effective \
Approach for Estimating Post-Click Conversion Rate. SIGIR 2018. https://doi.org/10.1145/3209978.3210104"""


@register("adapter", "aliccp")
def prepare(
    input: Path,
    output: Path,
    *,
    fields: Annotated[
        str, typer.Option(help="Feature fields to keep, comma separated, such as 101,205,206; default: all.")
    ] = "",
    max_list: Annotated[
        int, typer.Option(min=1, help="Ids kept of a field with several, the first ones of the file.")
    ] = 20,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the training file's impressions, drawn by seed.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the validation impressions.")] = 0,
    min_count: MinCount = 2,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """Ali-CCP: clicks, and conversions after clicks, on impressions of Taobao's recommender.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    if validation_share >= 1:
        raise UserError("prepare aliccp: --validation-share 1 leaves nothing to train on; lower it.")
    chosen = _fields(fields)
    own, common = ([name for name in group if name in chosen] for group in (OWN, COMMON))
    with output_folder(output) as folder, workspace(folder, memory, threads) as connection:
        for position, part in enumerate(("train", "test")):
            progress(f"reading {part}", 0.3 * position)
            _load(connection, input, part, own, common, max_list)
        many = {name for name in chosen if _longest(connection, name, name in OWN) > 1}
        shares = {"1": validation_share, "0": 1 - validation_share}
        held = f"{random_split('CAST(sample AS VARCHAR)', shares, seed=seed)} = '1'"
        conditions = {"train": f"NOT ({held})", "validation": held, "test": "true"}
        vocabularies = Vocabularies(connection, Numbering(min_count))
        for position, name in enumerate(chosen):
            progress("numbering", 0.6 + 0.1 * position / len(chosen))
            column = Categorical(name, f'"{name}"', many=True)
            if name in OWN:
                vocabularies.add(column, "skeleton_train", conditions["train"])
            else:
                vocabularies.add(column, "common_train", "true")
        schema = _schema(chosen, many)
        counts, missing = {}, 0
        for position, split in enumerate(SPLITS):
            part = "test" if split == "test" else "train"
            if split != "validation":
                progress(f"common features of {part}", 0.7 + 0.08 * position)
                users = CommonFeatures(connection, part, common, vocabularies, scratch(folder, f"common_{part}"))
            progress(f"writing {split}", 0.72 + 0.08 * position)
            with SplitWriter(folder / split, schema) as writer:
                for batch in stream(connection, f"SELECT * FROM skeleton_{part} WHERE {conditions[split]}"):
                    writer.write(_rows(batch, own, users, vocabularies, many, schema))
            counts[split] = writer.rows
            missing, users.missing = missing + users.missing, 0
        refuse_empty(counts, "set --validation-share so that it and training have rows")
        vocabularies.write(folder / "vocabularies.parquet")
        notes = _notes(connection, missing, max_list, min_count)
        connection.close()
        progress("describing", 0.95)
        describe(folder, _specification(chosen, vocabularies.sizes, counts, seed, notes))
    progress("done", 1.0)


class CommonFeatures:
    """The users' features as lists of ids, laid out in files that are mapped, not read: [rows + 1] offsets and ids."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        part: str,
        names: list[str],
        vocabularies: Vocabularies,
        place: Path,
    ) -> None:
        place.mkdir()
        self.missing = 0
        """Impressions met so far whose index has no common features."""
        indices: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        lengths: dict[str, list[np.ndarray]] = {name: [np.zeros(1, dtype=np.int64)] for name in names}
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(place / name, "wb")) for name in names}
            for batch in stream(connection, f"SELECT * FROM common_{part} ORDER BY number"):
                indices.append(batch.column("number").to_numpy(False))
                for name in names:
                    ids = vocabularies.encode(name, batch.column(name))
                    files[name].write(ids.flatten().to_numpy(False).tobytes())
                    lengths[name].append(np.diff(ids.offsets.to_numpy(False)).astype(np.int64))
        self._indices = np.concatenate(indices)
        self._offsets = {name: np.cumsum(np.concatenate(parts)) for name, parts in lengths.items()}
        self._ids = {
            name: np.memmap(place / name, dtype=np.int32, mode="r")
            if self._offsets[name][-1]
            else np.zeros(0, dtype=np.int32)
            for name in names
        }

    def find(self, indices: np.ndarray) -> np.ndarray:
        """Row of each index, [n] int64; -1 for one that has no common features."""
        if len(self._indices) == 0:
            rows = np.full(len(indices), -1)
        else:
            places = np.minimum(np.searchsorted(self._indices, indices), len(self._indices) - 1)
            rows = np.where(self._indices[places] == indices, places, -1)
        self.missing += int((rows < 0).sum())
        return rows

    def take(self, name: str, rows: np.ndarray) -> pa.ListArray:
        """The lists of the feature ``name`` for ``rows`` of :meth:`find`."""
        known = np.maximum(rows, 0)
        first = self._offsets[name][known]
        lengths = np.where(
            rows < 0, 0, self._offsets[name][np.minimum(known + 1, len(self._offsets[name]) - 1)] - first
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(self._ids[name][places]))


def _fields(text: str) -> list[str]:
    everything = [*OWN, *COMMON]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in everything:
            raise UserError(f"prepare aliccp: there is no field {name!r}; {suggest(name, everything)}.")
    return [name for name in everything if not names or name in names]


def _load(
    connection: duckdb.DuckDBPyConnection, input: Path, part: str, own: list[str], common: list[str], max_list: int
) -> None:
    """Make the tables skeleton_PART (in the file's order) and common_PART, with a list of raw ids per field."""
    options = "header = false, delim = ',', quote = '', max_line_size = 16777216"
    (path,) = find_files(input, [f"sample_skeleton_{part}.csv"], "the impressions of Ali-CCP")[:1]
    columns = dict.fromkeys(("sample", "click", "conversion"), "BIGINT") | {"common": "VARCHAR"}
    columns |= {"count": "INTEGER", "features": "VARCHAR"}
    labels = """sample, CAST(click AS TINYINT) AS click, CASE WHEN click = 1 THEN CAST(conversion AS TINYINT) END AS conversion,
    CASE WHEN click = 0 AND conversion = 1 THEN 1 ELSE 0 END AS strange"""
    selected = ", ".join([labels, f"{_number('common')} AS common", *(_ids_of(name, max_list) for name in own)])
    insert_csv(connection, f"skeleton_{part}", [path], columns, selected, options=options)
    (wrong,) = one_row(
        connection,
        f"""SELECT count(*) FROM skeleton_{part}
        WHERE sample IS NULL OR click IS NULL OR click NOT IN (0, 1) OR conversion NOT IN (0, 1)""",
    )
    if wrong:
        raise UserError(
            f"{path}: {wrong:,} rows have no sample id or a label other than 0 and 1; download the file again."
        )
    (path,) = find_files(input, [f"common_features_{part}.csv"], "the common features of Ali-CCP")[:1]
    columns = {"common": "VARCHAR", "count": "INTEGER", "features": "VARCHAR"}
    selected = ", ".join([f"{_number('common')} AS number", *(_ids_of(name, max_list) for name in common)])
    insert_csv(connection, f"common_{part}", [path], columns, selected, options=options)
    rows, distinct = one_row(connection, f"SELECT count(*), count(DISTINCT number) FROM common_{part}")
    if rows != distinct:
        raise UserError(f"{path}: has {rows - distinct:,} rows whose index came before; download the file again.")


def _number(text: str) -> str:
    """SQL for 63 bits of the md5 sum of an index, which is a text of 16 or more hexadecimal digits."""
    return f"CAST(md5_number_lower({text}) >> 1 AS BIGINT)"


def _ids_of(field: str, max_list: int) -> str:
    pattern = f"(?:^|\x01){field}\x02([0-9]+)\x03"
    return f"CAST(regexp_extract_all(features, '{pattern}', 1)[:{max_list}] AS BIGINT[]) AS \"{field}\""


def _longest(connection: duckdb.DuckDBPyConnection, field: str, own: bool) -> int:
    table = "skeleton" if own else "common"
    parts = [f'SELECT max(len("{field}")) AS n FROM {table}_{part}' for part in ("train", "test")]
    return one_row(connection, f"SELECT max(n) FROM ({' UNION ALL '.join(parts)})")[0]


def _schema(names: list[str], many: set[str]) -> pa.Schema:
    fields = [pa.field("sample", pa.int64()), pa.field("click", pa.int8()), pa.field("conversion", pa.int8())]
    fields += [pa.field(f"field_{name}", pa.list_(pa.int32()) if name in many else pa.int32()) for name in names]
    return pa.schema(fields)


def _rows(
    batch: pa.RecordBatch,
    own: list[str],
    users: CommonFeatures,
    vocabularies: Vocabularies,
    many: set[str],
    schema: pa.Schema,
) -> pa.RecordBatch:
    rows = users.find(batch.column("common").to_numpy(False))
    columns = {name: batch.column(name) for name in ("sample", "click", "conversion")}
    for name in schema.names[3:]:
        field = name.removeprefix("field_")
        ids = vocabularies.encode(field, batch.column(field)) if field in own else users.take(field, rows)
        columns[name] = ids if field in many else _single(ids)
    return pa.RecordBatch.from_pydict(columns)


def _single(lists: pa.ListArray) -> pa.Array:
    """Lists of at most one id as ids; an empty list is null."""
    offsets = lists.offsets.to_numpy(zero_copy_only=False)
    empty = np.diff(offsets) == 0
    values = lists.values.to_numpy(zero_copy_only=False)
    ids = np.zeros(len(lists), dtype=np.int32)
    ids[~empty] = values[offsets[:-1][~empty]]
    return pa.array(ids, mask=empty)


def _notes(connection: duckdb.DuckDBPyConnection, missing: int, max_list: int, min_count: int) -> str:
    (strange,) = one_row(
        connection,
        "SELECT sum(strange) FROM (SELECT strange FROM skeleton_train UNION ALL SELECT strange FROM skeleton_test)",
    )
    notes = [f"ids by frequency in training, from {min_count} times on", f"lists keep their first {max_list} ids"]
    if strange:
        notes.append(f"{strange:,} impressions had a conversion without a click, which is left out")
    if missing:
        notes.append(f"{missing:,} impressions have no common features")
    return "; ".join(notes)


def _specification(
    names: list[str], sizes: dict[str, int], counts: dict[str, int], seed: int, notes: str
) -> DatasetSpec:
    texts = {
        "train": "the published training impressions without validation rows",
        "validation": f"random published training impressions (seed {seed})",
        "test": "the published test impressions",
    }
    return DatasetSpec(
        name="aliccp",
        description=f"Ali-CCP impressions in the order of the files; {notes}.",
        licence=LICENCE,
        citation=CITATION,
        splits={name: SplitSpec(folder=name, rows=counts[name], description=texts[name]) for name in SPLITS},
        features=[FeatureSpec(name=f"field_{name}", kind="sparse", vocabulary_size=sizes[name]) for name in names],
        labels=[LabelSpec(name="click"), LabelSpec(name="conversion", description="null where there was no click")],
    )
