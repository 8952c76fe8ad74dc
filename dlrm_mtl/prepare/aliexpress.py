"""AliExpress search logs: impressions with clicks and purchases from several countries, in the layout of MTReclib.

A folder ``AliExpress_NL`` (and so on) per country with ``train.csv`` and ``test.csv``, comma separated with a header:
search_id, categorical_1..16 (integers), numerical_1..63, click, conversion. The test file is the published later part of the
log. There is no published validation split: it is cut from the training file, so that no choice is made on test rows.
"""

from __future__ import annotations

import csv
import gzip
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
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.common.vocabularies import Categorical, HashSize, MinCount, Numbering, Vocabularies, write_splits

CATEGORIES = [f"categorical_{i}" for i in range(1, 17)]
NUMBERS = [f"numerical_{i}" for i in range(1, 64)]
LABELS = ["click", "conversion"]

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
    if validation_share >= 1:
        raise UserError("prepare aliexpress: --validation-share 1 leaves nothing to train on; lower it.")
    names = [name.strip() for name in countries.split(",") if name.strip()]
    folders = {name: input / f"AliExpress_{name}" for name in names} or {"": input}
    with output_folder(output) as folder, workspace(folder, memory, threads) as connection:
        validations = []
        for position, (country, place) in enumerate(folders.items()):
            progress(f"reading {country}".strip(), 0.4 * position / len(folders))
            cut, end = _load(connection, place, position + 1, validation_share)
            validations.append(f"(rowid >= {cut} AND rowid < {end})")
        _check_labels(connection, input)
        if validation == "last":
            held = " OR ".join(validations)
        else:
            shares = {"1": validation_share, "0": 1 - validation_share}
            drawn = random_split("country || ':' || search_id", shares, seed=seed)
            held = f"{drawn} = '1'"
        conditions = {
            "train": f"NOT test AND NOT ({held})",
            "validation": f"NOT test AND ({held})",
            "test": "test",
        }
        categorical = [Categorical(name, name) for name in CATEGORIES]
        vocabularies = Vocabularies(connection, Numbering(min_count, hash_size))
        for position, column in enumerate(categorical):
            progress("numbering", 0.4 + 0.1 * position / len(categorical))
            vocabularies.add(column, "rows", conditions["train"])
        others: dict[str, tuple[str, pa.DataType]] = {"search_id": ("search_id", pa.int64())}
        others |= {name: (name, pa.int8()) for name in LABELS}
        if names:
            others["country"] = ("country", pa.int32())
        others |= {name: (name, pa.float32()) for name in NUMBERS}
        counts = write_splits(
            vocabularies,
            folder,
            "rows",
            conditions,
            categorical,
            others,
            lambda split, done: progress(f"writing {split}", 0.5 + 0.4 * done),
        )
        refuse_empty(counts, "set --validation-share so that it and training have rows")
        vocabularies.write(folder / "vocabularies.parquet")
        connection.close()
        progress("describing", 0.9)
        how = "the last rows" if validation == "last" else f"random searches (seed {seed})"
        describe(folder, _specification(names, vocabularies.sizes, counts, f"{how} of the published training file"))
    progress("done", 1.0)


def _load(
    connection: duckdb.DuckDBPyConnection, folder: Path, country: int, validation_share: float
) -> tuple[int, int]:
    """Append a country's files to the table rows; returns from and to which row the last training rows are validation."""
    ends = []
    for part in ("train", "test"):
        paths = find_files(folder, [f"*{part}*.csv"], f"one AliExpress {part}ing file")
        if len(paths) > 1:
            raise UserError(
                f"{folder}: has {', '.join(path.name for path in paths)}; leave one {part}ing file in it, or name "
                "--countries."
            )
        columns = _columns(paths[0])
        selected = ", ".join(
            [
                f"CAST({country} AS INTEGER) AS country",
                f"{part == 'test'} AS test",
                *("search_id", *LABELS, *CATEGORIES, *NUMBERS),
            ]
        )
        insert_csv(connection, "rows", paths, columns, selected, options="header = true, delim = ',', quote = '\"'")
        ends.append(one_row(connection, "SELECT count(*) FROM rows")[0])
    start = one_row(connection, f"SELECT count(*) FROM rows WHERE country < {country}")[0]
    return ends[0] - round(validation_share * (ends[0] - start)), ends[0]


def _columns(path: Path) -> dict[str, str]:
    """The columns of a file, in its order, and their types; raises :class:`UserError` if one is missing."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            header = [name.strip() or f"unnamed_{place}" for place, name in enumerate(next(csv.reader(file), []))]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download the file again.") from None
    missing = [name for name in ("search_id", *CATEGORIES, *NUMBERS, *LABELS) if name not in header]
    if missing:
        raise UserError(
            f"{path}: its header lacks {missing[0]} ({len(missing)} columns in all); is it of MTReclib's layout?"
        )
    types = dict.fromkeys(["search_id", *CATEGORIES], "BIGINT") | dict.fromkeys(NUMBERS, "FLOAT")
    return {name: {**types, **dict.fromkeys(LABELS, "TINYINT")}.get(name, "VARCHAR") for name in header}


def _check_labels(connection: duckdb.DuckDBPyConnection, place: Path) -> None:
    for name in LABELS:
        (wrong,) = one_row(connection, f"SELECT count(*) FROM rows WHERE {name} IS NULL OR {name} NOT IN (0, 1)")
        if wrong:
            raise UserError(f"{place}: {wrong:,} rows have a {name} other than 0 and 1; download the files again.")


def _specification(names: list[str], sizes: dict[str, int], counts: dict[str, int], validation: str) -> DatasetSpec:
    features = []
    if names:
        numbers = ", ".join(f"{number}: {name}" for number, name in enumerate(names, 1))
        features.append(FeatureSpec(name="country", kind="sparse", vocabulary_size=len(names) + 1, description=numbers))
    features += [FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name]) for name in CATEGORIES]
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
        splits={name: SplitSpec(folder=name, rows=counts[name], description=texts[name]) for name in SPLITS},
        features=features,
        labels=[
            LabelSpec(name="click"),
            LabelSpec(name="conversion", description="over all impressions: 1 only where there was a click (CTCVR)"),
        ],
    )
