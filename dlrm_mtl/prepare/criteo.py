"""Criteo click logs: display ads, one row per impression in the order of time, with 13 counts and 26 hashed categories.

``--layout raw`` is the Kaggle challenge's ``train.txt`` and the terabyte's ``day_0`` to ``day_23``: label, I1..I13, C1..C26,
tab separated, any field but the label may be empty, and empty fields at the end of a line may be missing. Counts become
sign(x) ln(1 + abs(x)); an empty one stays null (the reader reads the mean), an empty category too (no id).

``--layout indexed`` is the small set of the DeepLight code: a training and a test file of label and 39 comma separated
indices; the 13 counts are there as categories, so all 39 become categories.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import duckdb
import pyarrow as pa
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.duck import (
    SPLITS,
    Memory,
    Threads,
    find_files,
    insert_csv,
    one_row,
    refuse_empty,
    workspace,
)
from dlrm_mtl.prepare.common.io import Progress, output_folder
from dlrm_mtl.prepare.common.vocabularies import Categorical, HashSize, MinCount, Numbering, Vocabularies, write_splits

COUNTS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]

LICENCE = "Criteo's terms for the data set, research and non-commercial use; see https://ailab.criteo.com"
CITATION = """\
Criteo Display Advertising Challenge, Kaggle 2014, https://www.kaggle.com/c/criteo-display-ad-challenge; Criteo 1TB Click \
Logs, Criteo AI Lab, https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset/"""
INDEXED_CITATION = """\
Wei Deng, Junwei Pan, Tian Zhou, Deguang Kong, Aaron Flores, Guang Lin. DeepLight: Deep Lightweight Feature Interactions for \
Accelerating CTR Predictions in Ad Serving. WSDM 2021. https://doi.org/10.1145/3437963.3441727"""


@register("adapter", "criteo")
def prepare(
    input: Path,
    output: Path,
    *,
    layout: Annotated[
        Literal["raw", "indexed"], typer.Option(help="`raw`: Criteo's files; `indexed`: DeepLight's small set.")
    ] = "raw",
    files: Annotated[
        str | None,
        typer.Option(help="Pattern of the raw files' names; default: train.txt, or else day_*.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["shares", "last-day"],
        typer.Option(
            help="`shares`: the last rows, in the order of files, are validation, then test; `last-day`: the first half "
            "of the last file is validation, the second test."
        ),
    ] = "shares",
    validation_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows.")] = 1 / 14,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows (raw).")] = 1 / 14,
    min_count: MinCount = 2,
    hash_size: HashSize = None,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """Criteo click logs (Kaggle 2014, terabyte): clicks on display ads.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    if validation_share + test_share >= 1:
        raise UserError(
            f"prepare criteo: --validation-share {validation_share} and --test-share {test_share} leave nothing to train on; "
            "lower them."
        )
    if layout == "indexed" and (split == "last-day" or files is not None):
        raise UserError("prepare criteo: --split last-day and --files are for --layout raw; leave them out.")
    with output_folder(output) as folder, workspace(folder, memory, threads) as connection:
        progress("reading", 0.0)
        if layout == "raw":
            conditions = _load_raw(connection, input, files, split, validation_share, test_share)
        else:
            conditions = _load_indexed(connection, input, validation_share)
        names = CATEGORIES if layout == "raw" else [*COUNTS, *CATEGORIES]
        if layout == "raw":
            categorical = [Categorical(name, name, lambda value: f"format('{{:08x}}', {value})") for name in names]
        else:
            categorical = [Categorical(name, name) for name in names]
        vocabularies = Vocabularies(connection, Numbering(min_count, hash_size))
        for position, column in enumerate(categorical):
            progress("numbering", 0.3 + 0.2 * position / len(categorical))
            vocabularies.add(column, "rows", conditions["train"])
        others: dict[str, tuple[str, pa.DataType]] = {"click": ("click", pa.int8())}
        if layout == "raw":
            others |= {f"{name}_log": (f"sign({name}) * ln(1 + abs({name}))", pa.float32()) for name in COUNTS}
        counts = write_splits(
            vocabularies,
            folder,
            "rows",
            conditions,
            categorical,
            others,
            lambda split, done: progress(f"writing {split}", 0.5 + 0.4 * done),
        )
        refuse_empty(counts, "raise its share")
        vocabularies.write(folder / "vocabularies.parquet")
        connection.close()
        progress("describing", 0.9)
        describe(folder, _specification(layout, names, vocabularies.sizes, counts, Numbering(min_count, hash_size)))
    progress("done", 1.0)


def _load_raw(
    connection: duckdb.DuckDBPyConnection,
    input: Path,
    files: str | None,
    split: str,
    validation_share: float,
    test_share: float,
) -> dict[str, str]:
    """Make the table rows in the order of the files; returns the condition of each split."""
    if files is not None:
        paths = find_files(input, [files], files)
    else:
        what = "Criteo's train.txt or day_0, day_1, ..."
        whole = any((input / f"train.txt{ending}").is_file() for ending in ("", ".gz"))
        paths = find_files(input, ["train.txt"] if whole else ["day_*[0-9]"], what)
    paths.sort(key=_day)
    columns = {"click": "INTEGER", **dict.fromkeys(COUNTS, "INTEGER"), **dict.fromkeys(CATEGORIES, "VARCHAR")}
    selected = ", ".join(
        [
            "CAST(click AS TINYINT) AS click",
            *COUNTS,
            *(f"CAST('0x' || {name} AS BIGINT) AS {name}" for name in CATEGORIES),
        ]
    )
    options = "header = false, delim = '\t', quote = '', null_padding = true"
    rows = [0]
    for path in paths:
        insert_csv(connection, "rows", [path], columns, selected, options=options)
        rows.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    _check_labels(connection, paths[0])
    if split == "last-day":
        if len(paths) < 2:
            raise UserError(f"{input}: has one file, {paths[0].name}; --split last-day needs several, use shares.")
        cuts = [rows[-2], (rows[-2] + rows[-1] + 1) // 2]
    else:
        cuts = [rows[-1] - round(share * rows[-1]) for share in (validation_share + test_share, test_share)]
    first, second = cuts
    return {
        "train": f"rowid < {first}",
        "validation": f"rowid >= {first} AND rowid < {second}",
        "test": f"rowid >= {second}",
    }


def _load_indexed(connection: duckdb.DuckDBPyConnection, input: Path, validation_share: float) -> dict[str, str]:
    names = [*COUNTS, *CATEGORIES]
    columns = dict.fromkeys(["click", *names], "INTEGER")
    selected = ", ".join(["CAST(click AS TINYINT) AS click", *(f"CAST({name} AS BIGINT) AS {name}" for name in names)])
    rows = []
    for what in ("train", "test"):
        paths = find_files(input, [f"*indexed_{what}*.csv", f"{what}.csv"], f"DeepLight's {what}ing file")
        insert_csv(connection, "rows", paths[:1], columns, selected, options="header = false, delim = ',', quote = ''")
        _check_labels(connection, paths[0])
        rows.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    cut = rows[0] - round(validation_share * rows[0])
    return {
        "train": f"rowid < {cut}",
        "validation": f"rowid >= {cut} AND rowid < {rows[0]}",
        "test": f"rowid >= {rows[0]}",
    }


def _check_labels(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    (wrong,) = one_row(connection, "SELECT count(*) FROM rows WHERE click IS NULL OR click NOT IN (0, 1)")
    if wrong:
        raise UserError(
            f"{path}: {wrong:,} rows have a label other than 0 and 1 (first column); is this the training file?"
        )


def _day(path: Path) -> tuple[int, str]:
    digits = path.name.removesuffix(".gz").rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 0, path.name)


def _specification(
    layout: str, names: list[str], sizes: dict[str, int], counts: dict[str, int], numbering: Numbering
) -> DatasetSpec:
    ids = (
        f"ids by frequency in training, from {numbering.min_count} times on"
        if numbering.hash_size is None
        else "hashed ids"
    )
    source = "Criteo click logs" if layout == "raw" else "Criteo click logs, 20,000 rows indexed by the DeepLight code"
    features = [FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name]) for name in names]
    if layout == "raw":
        features += [
            FeatureSpec(name=f"{name}_log", kind="dense", description=f"sign(x) ln(1 + abs(x)) of {name}")
            for name in COUNTS
        ]
    return DatasetSpec(
        name="criteo",
        description=f"{source}: impressions in the order of the files; {ids}; empty fields are null.",
        licence=LICENCE,
        citation=CITATION if layout == "raw" else f"{CITATION}. Indexed sample: {INDEXED_CITATION}",
        splits={name: SplitSpec(folder=name, rows=counts[name]) for name in SPLITS},
        features=features,
        labels=[LabelSpec(name="click")],
    )
