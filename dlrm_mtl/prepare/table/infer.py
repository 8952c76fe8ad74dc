"""Drafting the description of a user's table from its first rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import mapping_of, validate
from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.data.leaks import Candidate, Leak, find_leaks
from dlrm_mtl.prepare.table.description import LabelConfig, SourceConfig, TableDescription
from dlrm_mtl.prepare.table.dialect import Dialect, guess_dialect
from dlrm_mtl.prepare.table.files import Table, load
from dlrm_mtl.prepare.table.find import Found, find_files, given_splits
from dlrm_mtl.prepare.table.guess import Column, look, refine
from dlrm_mtl.prepare.table.kinds import refuse_other_kinds
from dlrm_mtl.prepare.table.likely import find_labels, is_time
from dlrm_mtl.prepare.table.values import is_list, label, number

SAMPLE_ROWS = 100_000
NO_FEATURES = ("keep", "ignore")
"""Kinds of columns that are not features."""

FEW = 50
"""Largest number of distinct integers in a column that is assumed to be a category."""

MANY_TIMES = 20
"""Smallest number of distinct times for a split by time; with fewer, a split may be empty."""

IDENTIFIER = re.compile(
    r"(^|_)(id|uid|iid|key|code|zip|postcode)$|^(user|item|product|ad|campaign|session|video|movie|shop|seller)s?$"
)
QUANTITY = re.compile(
    r"(^|_)(num|number|count|cnt|age|price|cost|amount|duration|length|len|size|score|rate|ratio|avg|mean|sum|total|log|days|hours"
    r"|seconds|weeks?|weight|height|width|value|gain|losse?|wage|years?|money"
    r"|salary|revenue|spend|spent|spending|balance|fee|budget|earning|dividend|profit|tax|minutes"
    r"|percent|pct|distance|km|population|quantity|qty|volume)($|_|s$)"
)
SURVEY_WEIGHT = re.compile(
    r"(^|_)(instance|sample|survey|case|row|person|final|population)_?(weight|wgt|wt)$|(^|_)(fnlwgt|pweight|wgt)$"
)


def write_draft(path: Path, output: Path | None, columns: Sequence[str] | None = None) -> str:
    """Draft a description of the file or folder ``path`` into the file ``output``; without ``output``, return it.

    Args:
        path: the file or folder.
        output: the file to write.
        columns: names of the columns of CSV files without a header.

    Raises:
        UserError: ``path`` cannot be read, or ``output`` exists or cannot be written.
    """
    drafted = draft_table(path, columns)
    if output is None:
        return drafted.text.rstrip("\n")
    if output.exists():
        raise UserError(f"{output}: already exists; name another file for the draft, or remove it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(drafted.text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name a file you may write to.") from None
    then = f"dlrm-mtl prepare table --input {path} --description {output} --output FOLDER"
    remarks = [f"remark: {remark}" for remark in drafted.remarks]
    return "\n".join([*remarks, f"{output}: drafted; look it over, then: {then}"])


@dataclass(frozen=True)
class Draft:
    """A draft of a description."""

    text: str
    """Commented YAML."""
    remarks: list[str]
    """Remarks on uncertain parts; the text contains them, too."""


def draft(path: Path, columns: Sequence[str] | None = None) -> str:
    """Draft as commented YAML; raises :class:`UserError` if ``path`` cannot be read."""
    return draft_table(path, columns).text


def draft_table(path: Path, columns: Sequence[str] | None = None) -> Draft:
    """Draft a description of the file or folder ``path``, with the column names ``columns`` if it has no header.

    Raises:
        UserError: ``path`` cannot be read, or ``columns`` do not fit it.
    """
    found = find_files([path], SourceConfig())
    if columns is not None and found.parquet:
        raise UserError(f"--columns: {path} is Parquet, which names its columns; leave --columns out.")
    dialect = Dialect()
    if not found.parquet:
        for file in found.files[:1]:
            refuse_other_kinds(file, parquet=False)
            dialect = guess_dialect(file, columns)
    dialect.remarks += [remark.removeprefix("remark: ") for remark in found.remarks]
    with tempfile.TemporaryDirectory() as work:
        table = _sample(Path(work), "sample", found, dialect)
        if not found.parquet and refine(table, dialect):
            table.connection.close()
            table = _sample(Path(work), "refined", found, dialect)
        with table.connection:
            text = _compose(path, dialect, table, found.files)
    content = mapping_of(text, f"draft of {path}")
    if "labels" in content and any(feature["kind"] not in NO_FEATURES for feature in content["features"]):
        validate(TableDescription, content, f"draft of {path}")
    return Draft(text, dialect.remarks)


def _sample(work: Path, name: str, found: Found, dialect: Dialect) -> Table:
    connection = duckdb.connect(str(work / f"{name}.duckdb"))
    config = SourceConfig.model_validate(dialect.source)
    return load(connection, work, found.files, config, parquet=found.parquet, limit=SAMPLE_ROWS)


def _compose(path: Path, dialect: Dialect, table: Table, files: Sequence[Path]) -> str:
    columns = [look(table, name) for name in table.types if name]
    headless, rows = not dialect.named, table.rows
    labels = find_labels(columns, headless, dialect.remarks)
    leaks = _leaks(table, columns, labels)
    times = [column for column in columns if column.name not in labels and is_time(column, headless)]
    time = max(times, key=lambda column: column.distinct, default=None)
    stem = re.sub(r"\W+", "_", path.name.split(".")[0]).strip("_") or "table"
    lines = []
    for column in columns:
        entry, why = _feature(column, rows, column.name in labels, headless)
        told = [leak for leak in leaks if leak.column == column.name]
        if told and entry["kind"] not in NO_FEATURES:
            said = "; ".join(leak.text for leak in told)
            dialect.remarks.append(f"column {column.name!r} may tell the answer: {said}")
            if any(leak.exact for leak in told):
                why = f"LEAKS THE ANSWER? {said}. {entry['kind']} if it is known before; {why}"
                entry = {"kind": "ignore"}
            else:
                why = f"LEAKS THE ANSWER? {said}. ignore if it is known only afterwards; {why}"
        lines.append(f"- {to_yaml({'name': column.name, **entry})}  # {why}")
    if not any(f"kind: {kind}" in line for line in lines for kind in ("sparse", "sequence", "dense")):
        dialect.remarks.append("no column looks like a feature; give at least one the kind sparse or dense")
    head = [
        f"# Drafted from the first {rows:,} rows of {' '.join(path.name.split())}. Look it over: kinds are guesses.",
        "# Every key is described in docs/prepare.md.",
        *(f"# Remark: {' '.join(remark.split())}." for remark in dialect.remarks),
        f"name: {to_yaml(stem)}",
    ]
    if dialect.source:
        head += ["source:", *(f"  {key}: {to_yaml(value)}" for key, value in dialect.source.items())]
    head += [
        "# sparse: a category or a list of them; sequence: a list, oldest first; dense: a number;",
        "# keep: no feature, but written, so that predictions find their rows; ignore: left out.",
        "features:",
    ]
    lines = [*head, *lines]
    if labels:
        lines += [
            "# binary labels are 0, 1 or null; `where` makes one from a condition; `kind: real` is any number.",
            "labels:",
            *(f"- {to_yaml(entry)}" for entries in labels.values() for entry in entries),
        ]
    else:
        lines += [
            "# No column looks like a label. Name one, and set its feature's kind to ignore, for example:",
            "# labels:",
            "# - {name: click}",
            "# - {name: good, where: 'rating >= 4'}",
            "# - {name: seconds, kind: real}",
        ]
    lines += [
        "# How rows are divided: random, time (cuts or shares), user (whole users), files.",
        *_split(time, columns, labels, given_splits(files)),
    ]
    return "\n".join(lines) + "\n"


def _leaks(table: Table, columns: Sequence[Column], labels: Mapping[str, list[dict[str, str]]]) -> list[Leak]:
    candidates, targets = {}, {}
    for column in columns:
        sql, type_ = table.column(column.name), column.type
        if column.name in labels:
            continue
        if is_list(type_):
            candidates[column.name] = Candidate(f"nullif(len({sql}), 0)", number=True, listed=True)
        elif column.numeric:
            candidates[column.name] = Candidate(number(table, column.name), number=True)
        elif not type_.startswith(("STRUCT", "MAP")):
            candidates[column.name] = Candidate(sql, number=False)
    for entries in labels.values():
        for entry in entries:
            config = LabelConfig.model_validate(entry)
            if config.kind == "binary":
                targets[config.name] = label(table, config)[0].replace("AS TINYINT)", "AS DOUBLE)")
    return find_leaks(table.connection, "rows", candidates, targets)


def _feature(column: Column, rows: int, is_label: bool, headless: bool) -> tuple[dict[str, object], str]:
    seen = f"{column.distinct:,} distinct" + (f", {column.nulls:.0%} missing" if column.nulls else "")
    name = column.words
    if is_label:
        return {"kind": "ignore"}, "a label: as a feature it would tell the model the answer"
    if is_list(column.type):
        ordered = re.search(r"(^|_)(seq|sequence|history|hist|last|recent)($|_)", name)
        return {"kind": "sequence" if ordered else "sparse"}, f"lists; type {column.type}"
    if column.type.startswith(("STRUCT", "MAP", "TIME ", "INTERVAL")) or column.type == "TIME":
        return {"kind": "ignore"}, f"type {column.type}"
    if column.distinct <= 1:
        return {"kind": "ignore"}, f"{seen}: nothing to learn"
    if is_time(column, headless) or column.dates:
        return {"kind": "ignore"}, f"a time, from {column.common[0] if column.dates else f'{column.low:.0f}'}"
    if SURVEY_WEIGHT.search(name) and column.numeric:
        return {"kind": "ignore"}, f"{seen}: how much a row counts, as it seems; dense if it says something of the row"
    if column.amounts:
        return {"kind": "ignore"}, f"{seen}: amounts such as {column.common[0][:20]!r}; write plain numbers to use them"
    if column.separator:
        ordered = re.search(r"(^|_)(seq|sequence|history|hist|last|recent)($|_)", name)
        kind = "sequence" if ordered else "sparse"
        return {
            "kind": kind,
            "separator": column.separator,
            **({"brackets": True} if column.brackets else {}),
            "max_length": 50,
        }, f"lists of {column.entries:.1f} entries on average"
    unique = column.distinct >= 0.98 * rows * (1 - column.nulls) and rows > FEW
    known = IDENTIFIER.search(name)
    if column.numeric:
        span = f"{column.low:g} to {column.high:g}"
        if column.padded:
            return {"kind": "sparse"}, f"{seen}, codes such as {column.common[0][:30]!r}"
        if not column.integral or column.low < 0 or (QUANTITY.search(name) and not known):
            extra: dict[str, object] = {"transform": "signed_log"} if max(column.high, -column.low) > 1000 else {}
            return {"kind": "dense", **extra}, f"{span}, {seen}"
        if unique:
            return {"kind": "keep"}, f"{seen}: another in nearly every row, by which predictions find their rows"
        if headless and not known and (quantity := _quantity(column, rows)):
            extra = {"transform": "log1p"} if column.high > 1000 else {}
            return {"kind": "dense", **extra}, f"{span}, {seen}, {quantity}; sparse if it is an identifier"
        if column.distinct <= FEW or known or headless:
            return {"kind": "sparse"}, f"{span}, {seen}; dense if its size means something"
        extra = {"transform": "log1p"} if column.high > 1000 else {}
        return {"kind": "dense", **extra}, f"{span}, {seen}; sparse if it is an identifier"
    if unique and known:
        return {"kind": "keep"}, f"{seen}: another in nearly every row, by which predictions find their rows"
    if unique:
        return {"kind": "ignore"}, f"{seen}: another in nearly every row"
    return {"kind": "sparse"}, f"{seen}, such as {column.common[0][:30]!r}"


def _quantity(column: Column, rows: int) -> str | None:
    """Reason why a column of whole numbers without a name seems to hold quantities; None if it seems to hold categories."""
    if column.distinct > FEW and column.high >= 1000 and column.zeros > 0.3:
        return "mostly 0, as amounts are"
    if column.distinct > FEW and column.distinct > 0.5 * rows * (1 - column.nulls):
        return "few come twice"
    return "spread as quantities are" if column.graded and column.distinct > 20 else None


def _split(
    time: Column | None,
    columns: Sequence[Column],
    labels: Mapping[str, list[dict[str, str]]],
    given: Mapping[str, Sequence[Path]],
) -> list[str]:
    shares = "{train: 0.8, validation: 0.1, test: 0.1}"
    random = f"split: {{name: random, seed: 0, shares: {shares}}}"
    if given:
        files = {split: [file.name for file in files] for split, files in given.items()}
        divide = {}
        if "validation" not in files or "test" not in files:
            for name in files.pop("test" if "test" in files else "validation"):
                divide[name] = {"validation": 0.5, "test": 0.5}
        entry = {"name": "files", "files": files, **({"divide": divide} if divide else {})}
        return [f"# {random}", f"split: {to_yaml(entry)}"]
    if time is not None:
        chosen = f"split: {{name: time, column: {to_yaml(time.name)}, shares: {shares}}}"
        return [f"# {random}", chosen] if time.distinct >= MANY_TIMES else [f"# {chosen}", random]
    user = next(
        (c for c in columns if re.search(r"(^|_)(user|uid|customer|member)", c.words) and c.name not in labels), None
    )
    other = [f"# split: {{name: user, column: {to_yaml(user.name)}, seed: 0, shares: {shares}}}"] if user else []
    return [*other, random]
