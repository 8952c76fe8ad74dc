"""Drafting the description of a user's table from its first rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import mapping_of, validate
from dlrm_mtl.prepare.table.description import SourceConfig, TableDescription
from dlrm_mtl.prepare.table.files import find_files, load
from dlrm_mtl.prepare.table.guess import Column, guess_source, look
from dlrm_mtl.prepare.table.values import is_list

SAMPLE_ROWS = 100_000
FEW = 50
"""A column of integers with no more distinct values is taken for a category."""

MANY_TIMES = 20
"""With fewer distinct times, shares by time may leave a split empty."""

LABEL = re.compile(
    r"(^|_)(label|target|y|click(ed)?|like(d)?|bought|buy|purchase(d)?|conversion|converted|order(ed)?|cart|favou?rite|follow(ed)?"
    r"|share(d)?|comment(ed)?|forward(ed)?|hate(d)?|install(ed)?|finish(ed)?|long_view|rating|stars|income|outcome|survived|churn(ed)?|default(ed)?)$"
)
IDENTIFIER = re.compile(
    r"(^|_)(id|uid|iid|key|code|zip|postcode)$|^(user|item|product|ad|campaign|session|video|movie|shop|seller)s?$"
)
QUANTITY = re.compile(
    r"(^|_)(num|number|count|cnt|age|price|cost|amount|duration|length|len|size|score|rate|ratio|avg|mean|sum|total|log|days|hours"
    r"|seconds|weeks?|weight|height|width|value|gain|loss|wage|year)($|_|s$)"
)
TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|day|dt)($|_)|_at$|_(time|date)_ms$")
LOWEST_SECONDS, HIGHEST_SECONDS = 631152000, 4102444800
"""From 1990 to 2100: integers within are taken for times if their column's name says so."""


def write_draft(path: Path, output: Path | None) -> str:
    """Draft a description of the file or folder ``path`` into the file ``output``, or return it if there is none.

    Raises :class:`UserError` if ``path`` cannot be read, or ``output`` exists or cannot be written.
    """
    text = draft(path)
    if output is None:
        return text.rstrip("\n")
    if output.exists():
        raise UserError(f"{output}: already exists; name another file for the draft, or remove it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name a file you may write to.") from None
    then = f"dlrm-mtl prepare table --input {path} --description {output} --output FOLDER"
    return f"{output}: drafted; look it over, then: {then}"


def draft(path: Path) -> str:
    """The draft, as commented YAML; raises :class:`UserError` if ``path`` cannot be read."""
    files, parquet = find_files([path], SourceConfig())
    source = {} if parquet else guess_source(files[0])
    config = SourceConfig.model_validate(source)
    with tempfile.TemporaryDirectory() as work, duckdb.connect(str(Path(work) / "sample.duckdb")) as connection:
        table = load(connection, Path(work), files, config, parquet=parquet, limit=SAMPLE_ROWS)
        columns = [look(table, name) for name in table.types]
        rows = table.rows
    text = _compose(path, source, columns, rows)
    if re.search(r"^labels:$", text, re.MULTILINE):
        validate(TableDescription, mapping_of(text, f"draft of {path}"), f"draft of {path}")
    return text


def _compose(path: Path, source: dict[str, object], columns: Sequence[Column], rows: int) -> str:
    headless = source.get("header") is False
    labels = {column.name: lines for column in columns if (lines := _label(column, columns, headless))}
    times = [column for column in columns if column.name not in labels and _is_time(column, headless)]
    time = max(times, key=lambda column: column.distinct, default=None)
    stem = re.sub(r"\W+", "_", path.name.split(".")[0]).strip("_") or "table"
    lines = [
        f"# Drafted from the first {rows:,} rows of {' '.join(path.name.split())}. Look it over: kinds are guesses.",
        "# Every key is described in docs/prepare.md.",
        f"name: {_yaml(stem)}",
    ]
    if source:
        lines += ["source:", *(f"  {key}: {_yaml(value)}" for key, value in source.items())]
    lines += [
        "# sparse: a category or a list of them; sequence: a list, oldest first; dense: a number; ignore: left out.",
        "features:",
    ]
    for column in columns:
        entry, why = _feature(column, rows, column.name in labels, headless)
        lines.append(f"- {_yaml({'name': column.name, **entry})}  # {why}")
    if labels:
        lines += [
            "# binary labels are 0, 1 or null; `where` makes one from a condition; `kind: real` is any number.",
            "labels:",
        ]
        for found in labels.values():
            lines += found
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
        *_split(time, columns, labels),
    ]
    return "\n".join(lines) + "\n"


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
    if _is_time(column, headless) or column.dates:
        return {"kind": "ignore"}, f"a time, from {column.common[0] if column.dates else f'{column.low:.0f}'}"
    if column.separator:
        ordered = re.search(r"(^|_)(seq|sequence|history|hist|last|recent)($|_)", name)
        kind = "sequence" if ordered else "sparse"
        return {
            "kind": kind,
            "separator": column.separator,
            "max_length": 50,
        }, f"lists of {column.entries:.1f} entries on average"
    unique = column.distinct >= 0.98 * rows * (1 - column.nulls) and rows > FEW
    known = IDENTIFIER.search(name)
    if column.numeric:
        span = f"{column.low:g} to {column.high:g}"
        if not column.integral or column.low < 0 or (QUANTITY.search(name) and not known):
            extra: dict[str, object] = {"transform": "signed_log"} if max(column.high, -column.low) > 1000 else {}
            return {"kind": "dense", **extra}, f"{span}, {seen}"
        if unique:
            return {"kind": "ignore"}, f"{seen}: another in nearly every row"
        if column.distinct <= FEW or known or headless:
            return {"kind": "sparse"}, f"{span}, {seen}; dense if its size means something"
        extra = {"transform": "log1p"} if column.high > 1000 else {}
        return {"kind": "dense", **extra}, f"{span}, {seen}; sparse if it is an identifier"
    if unique:
        return {"kind": "ignore"}, f"{seen}: another in nearly every row"
    return {"kind": "sparse"}, f"{seen}, such as {column.common[0][:30]!r}"


def _label(column: Column, columns: Sequence[Column], headless: bool) -> list[str]:
    named = LABEL.search(column.words)
    if headless:
        ends = [columns[0], columns[-1]]
        binary = next((end for end in ends if end.binary), None)
        named = named if binary is None else (re.match("", "") if column is binary else None)
    if not named or column.separator or is_list(column.type):
        return []
    entry: dict[str, object] = {"name": column.name}
    if column.binary:
        return [f"- {_yaml(entry)}"]
    if column.numeric and re.search(r"rating|stars|score", column.words) and column.high > 1:
        threshold = column.low + 0.75 * (column.high - column.low)
        threshold = round(threshold) if column.integral else threshold
        condition = f"{_name(column.name)} >= {threshold:g}"
        return [
            f"- {_yaml({'name': f'good_{column.words}', 'where': condition})}",
            f"- {_yaml({**entry, 'kind': 'real'})}",
        ]
    if column.distinct == 2 and not any('"' in value for value in column.common):
        value = f"{column.common[1]}" if column.numeric else f'"{column.common[1]}"'
        return [f"- {_yaml({**entry, 'where': f'{_name(column.name)} == {value}'})}"]
    return []


def _split(time: Column | None, columns: Sequence[Column], labels: dict[str, list[str]]) -> list[str]:
    shares = "{train: 0.8, validation: 0.1, test: 0.1}"
    random = f"split: {{name: random, seed: 0, shares: {shares}}}"
    if time is not None:
        chosen = f"split: {{name: time, column: {_yaml(time.name)}, shares: {shares}}}"
        return [f"# {random}", chosen] if time.distinct >= MANY_TIMES else [f"# {chosen}", random]
    user = next(
        (c for c in columns if re.search(r"(^|_)(user|uid|customer|member)", c.words) and c.name not in labels), None
    )
    other = [f"# split: {{name: user, column: {_yaml(user.name)}, seed: 0, shares: {shares}}}"] if user else []
    return [*other, random]


def _is_time(column: Column, headless: bool) -> bool:
    if column.type.startswith(("DATE", "TIMESTAMP")) or (column.dates and column.distinct > 1):
        return True
    if not column.integral:
        return False
    scale = 1000 if column.high > HIGHEST_SECONDS else 1
    seconds = LOWEST_SECONDS * scale <= column.low and column.high <= HIGHEST_SECONDS * scale
    days = column.low >= 19900101 and column.high <= 21001231  # such as 20240131
    return bool((seconds or days) and (TIME.search(column.words) or (headless and column.distinct > FEW)))


def _name(name: str) -> str:
    return (
        name
        if re.fullmatch(r"[^\W\d]\w*", name) and name not in ("and", "or", "not", "in", "is", "null")
        else f"`{name}`"
    )


def _yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
