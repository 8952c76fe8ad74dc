"""Columns of a user's table as SQL: texts, numbers, lists, labels; and the check that every value can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import quote
from dlrm_mtl.core.suggest import nearest
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.table.conditions import parse_condition
from dlrm_mtl.prepare.table.description import FeatureConfig, LabelConfig, SourceConfig
from dlrm_mtl.prepare.table.files import Table

EXACT = {"FLOAT": 2**24, "DOUBLE": 2**53}
"""Numbers from which on a floating-point number stands for several integers."""

LARGEST = 3.4e38
"""Largest number in the reader's float32."""

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN")
_UNSIGNED = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_NOTHING = "('none', 'nan', 'null', '<na>')"
_TIMES = ("DATE", "TIMESTAMP")
_TEXTS = ("VARCHAR", "BLOB", "UUID", "ENUM")


@dataclass(frozen=True)
class Check:
    """A condition that no row may meet."""

    bad: str
    """SQL that is true for wrong rows."""
    column: str
    """Column with the wrong value."""
    problem: str
    """Mistake in its value, and the remedy."""


def is_list(type_: str) -> bool:
    """Return True if values of this DuckDB type are lists."""
    return type_.endswith("]")


def text(table: Table, name: str) -> str:
    """A column as text."""
    return f"CAST({table.column(name)} AS VARCHAR)"


def id_text(table: Table, name: str) -> str:
    """A column as text for comparing ids: 17 for the integer 17, the double 17.0 or the text 17.0.

    Texts of whole numbers count as numbers only if all in the column are: pandas writes integers so beside missing values.
    """
    column, type_ = table.column(name), table.types[name]
    if type_ != "VARCHAR":
        return _by_value(column, type_)
    return _without_fraction(column) if _all_whole(table, (name, None), f"SELECT {column} FROM rows") else column


def _all_whole(table: Table, key: tuple[str, str | None], query: str) -> bool:
    """Return True if all texts of ``query`` are whole numbers; evaluated once for each ``key``."""
    if key not in table.whole:
        other = rf"FROM ({query}) AS t(value) WHERE NOT regexp_full_match(value, '-?\d+(\.0)?')"
        (found,) = one_row(table.connection, f"SELECT count(*) FROM (SELECT value {other} LIMIT 1)")
        table.whole[key] = found == 0
    return table.whole[key]


def _without_fraction(text: str) -> str:
    return rf"regexp_replace({text}, '^(-?\d+)\.0$', '\1')"


def whole_numbers(table: Table, features: Sequence[FeatureConfig]) -> list[str]:
    """Names of the sparse or sequence ``features`` whose values are numbers, so that a text 17.0 has the id of 17."""
    return [
        feature.name
        for feature in features
        if table.whole.get(
            (feature.source, feature.separator), table.types[feature.source].startswith((*_NUMBERS, *_UNSIGNED))
        )
    ]


def know_whole_numbers(table: Table, features: Sequence[FeatureConfig], names: Sequence[str]) -> None:
    """Treat the values of ``features`` as numbers if and only if ``names``, from :func:`whole_numbers`, contains them."""
    table.whole.update({(feature.source, feature.separator): feature.name in names for feature in features})


def _by_value(value: str, type_: str) -> str:
    if type_ in ("FLOAT", "DOUBLE"):
        whole = f"{value} = floor({value}) AND abs({value}) < {EXACT[type_]}"
        return f"CASE WHEN {whole} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR) ELSE CAST({value} AS VARCHAR) END"
    if type_.startswith("DECIMAL") and not type_.endswith(",0)"):
        return f"rtrim(rtrim(CAST({value} AS VARCHAR), '0'), '.')"
    return f"CAST({value} AS VARCHAR)"


def id_checks(table: Table, feature: FeatureConfig) -> list[Check]:
    """Checks of a sparse or sequence feature: no value may be a double that stands for several integers."""
    type_ = table.types[feature.source]
    plain = type_.split("[")[0]
    if plain not in EXACT:
        return []
    column = table.column(feature.source)
    narrowest = "FLOAT" if feature.source in table.single else plain
    limit = EXACT[narrowest]
    bad = f"abs({column}) >= {limit} AND isfinite({column})"
    if is_list(type_):
        bad = f"len(list_filter({column}, lambda x: abs(x) >= {limit} AND isfinite(x))) > 0"
    problem = (
        f"which {feature.kind} feature {feature.name!r} cannot tell from its neighbours: numbers of type {narrowest} from "
        f"{limit} on stand for several ids; write ids as integers or texts"
    )
    return [Check(bad, feature.source, problem)]


def number(table: Table, name: str) -> str:
    """A column as DOUBLE; times are in seconds since 1970, and other values are null."""
    column, type_ = table.column(name), table.types[name]
    if type_.startswith(_TIMES):
        return f"epoch({column})"
    if type_ == "BOOLEAN":
        column = f"CAST({column} AS INTEGER)"
    return f"TRY_CAST({_plain_number(column, table.source) if type_ == 'VARCHAR' else column} AS DOUBLE)"


def _plain_number(column: str, source: SourceConfig) -> str:
    """SQL of the text of a number with a decimal point, and without separators of thousands."""
    text = f"trim({column})"
    if source.thousands is not None:
        mark, point = re.escape(source.thousands), re.escape(source.decimal)
        grouped = rf"[-+]?\d{{1,3}}({mark}\d{{3}})+({point}\d*)?"
        plain = f"replace({text}, {quote(source.thousands)}, '')"
        text = f"CASE WHEN regexp_full_match({text}, {quote(grouped)}) THEN {plain} ELSE {text} END"
    return text if source.decimal == "." else f"replace({text}, {quote(source.decimal)}, '.')"


def elements(table: Table, feature: FeatureConfig, nulls: Sequence[str]) -> str:
    """A column as a list of texts, cut to its maximum length; null stays null."""
    column = table.column(feature.source)
    type_ = table.types[feature.source].split("[")[0]
    if is_list(table.types[feature.source]):
        column = f"list_transform({column}, lambda x: {_by_value('x', type_)})"
    elif feature.brackets:
        column = bracketed(text(table, feature.source), str(feature.separator))
    else:
        column = f"string_split({text(table, feature.source)}, {quote(str(feature.separator))})"
    absent = ", ".join(quote(null) for null in {"", *nulls})
    listed = f"list_filter({column}, lambda x: x IS NOT NULL AND x NOT IN ({absent}))"
    key = feature.source, feature.separator
    if type_ == "VARCHAR" and _all_whole(table, key, f"SELECT unnest({listed}) FROM rows"):
        listed = f"list_transform({listed}, lambda x: {_without_fraction('x')})"
    if feature.max_length is None:
        return listed
    return f"({listed})[{f'-{feature.max_length}:' if feature.kind == 'sequence' else f':{feature.max_length}'}]"


def bracketed(value: str, separator: str) -> str:
    """SQL of the entries of a text such as `[1, 2]` or `['a', 'b']`; None, nan and null without quotes are not entries."""
    mark = r"\s" if separator.isspace() else re.escape(separator)
    between = rf"[^{mark}\[\](){{}}]"
    quoted = r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'"
    pattern = rf"""{quoted}|[^{mark}\s\[\](){{}}"']{between}*"""
    entries = f"list_filter(regexp_extract_all({value}, {quote(pattern)}), lambda x: lower(trim(x)) NOT IN {_NOTHING})"
    quotes = f"({quote(chr(34))}, {quote(chr(39))})"
    return f"list_transform({entries}, lambda x: CASE WHEN x[1] IN {quotes} THEN x[2:-2] ELSE trim(x) END)"


def has_lists(table: Table, feature: FeatureConfig) -> bool:
    """Return True if a sparse or sequence feature has lists; raises :class:`UserError` if its column does not fit its kind."""
    type_ = table.types[feature.source]
    listed = is_list(type_)
    place = f"{table.files[0]}: column {feature.source!r} has type {type_}"
    if listed and not type_[: type_.index("[")].startswith((*_NUMBERS, *_TEXTS, "U")):
        raise UserError(
            f"{place}, which {feature.kind} feature {feature.name!r} cannot use; write lists of integers or texts."
        )
    if not listed and not type_.startswith((*_NUMBERS, *_TEXTS, *_TIMES, "U")):
        raise UserError(
            f"{place}, which {feature.kind} feature {feature.name!r} cannot use; write integers, texts or lists."
        )
    if listed and (type_.count("[") > 1 or feature.separator is not None):
        raise UserError(f"{place}, and feature {feature.name!r} needs a plain list without separator; change either.")
    if not listed and feature.separator is None:
        if feature.kind == "sequence" or feature.max_length is not None:
            raise UserError(
                f"{place} and no list, as feature {feature.name!r} needs; set its separator, or make it sparse without "
                "max_length."
            )
        return False
    return True


def dense(table: Table, feature: FeatureConfig) -> tuple[str, list[Check]]:
    """SQL of a dense feature as DOUBLE, and its checks."""
    value = number(table, feature.source)
    checks = _number_checks(table, feature.source, f"dense feature {feature.name!r}", "make the feature sparse")
    if feature.fill is not None:
        value = f"coalesce({value}, {feature.fill!r})"
    if feature.clip is not None:
        low, high = feature.clip
        value = f"CASE WHEN {value} IS NOT NULL THEN least(greatest({value}, {low!r}), {high!r}) END"
    if feature.transform == "log1p":
        problem = f"which log1p of feature {feature.name!r} cannot take: it is below 0; use signed_log, or clip"
        checks.append(Check(f"{value} < 0", feature.source, problem))
        value = f"ln(1 + {value})"  # checked to be 0 or more
    elif feature.transform == "signed_log":
        value = f"sign({value}) * ln(1 + abs({value}))"
    return f"CAST({value} AS DOUBLE)", checks


def label(table: Table, config: LabelConfig) -> tuple[str, list[Check]]:
    """SQL of a label, TINYINT or DOUBLE, and its checks."""
    if config.where is not None:
        condition = parse_condition(config.where)
        checks = []
        for name in sorted(condition.numbers):
            whose = f"label {config.name!r}, where {config.where!r} compares it with a number,"
            checks += _number_checks(table, name, whose, "compare it with a text in quotes")
        for name in sorted(condition.texts):
            _refuse_lists(table, name, f"label {config.name!r}")
        sql = condition.sql(lambda name: number(table, name), lambda name: text(table, name))
        return f"CAST({sql} AS TINYINT)", checks
    if config.kind == "real":
        checks = _number_checks(table, config.source, f"label {config.name!r}", "give a condition as where")
        return number(table, config.source), checks
    _refuse_lists(table, config.source, f"label {config.name!r}")
    value = number(table, config.source)
    if table.types[config.source] == "VARCHAR":
        value = f"coalesce({value}, TRY_CAST(trim({table.column(config.source)}) AS BOOLEAN)::INTEGER)"
    problem = f"which label {config.name!r} cannot be: it is neither 0 nor 1; give a condition as where, or make its kind real"
    bad = f"{table.column(config.source)} IS NOT NULL AND ({value} IS NULL OR {value} NOT IN (0, 1))"
    return f"CAST({value} AS TINYINT)", [Check(bad, config.source, problem)]


MOST_VALUES = 10_000
"""Number of distinct values that are searched for those nearest to a mistaken text."""


def verify_literals(table: Table, config: LabelConfig) -> None:
    """Refuse a label that is equal in all rows because its condition names a text that its column never holds.

    Raises:
        UserError: with the nearest texts.
    """
    if config.where is None:
        return
    condition = parse_condition(config.where)
    if not condition.literals:
        return
    sql = condition.sql(lambda name: number(table, name), lambda name: text(table, name))
    (values,) = one_row(table.connection, f"SELECT count(DISTINCT {sql}) FROM rows")
    if values > 1:
        return
    for column, literal in sorted(condition.literals):
        value = text(table, column)
        if one_row(table.connection, f"SELECT count(*) FROM rows WHERE {value} = {quote(literal)}")[0]:
            continue
        query = f"SELECT DISTINCT {value} FROM rows WHERE {value} IS NOT NULL LIMIT {MOST_VALUES}"
        held = sorted(str(row[0]) for row in table.connection.execute(query).fetchall())
        near = nearest(literal, held, 3, cutoff=0.5) or held[:3]
        raise UserError(
            f"label {config.name!r}: where {config.where!r} is the same in all rows, because column {column!r} never holds "
            f"{literal!r}; it holds {', '.join(map(repr, near))}: correct the text, with blanks as they stand in the file."
        )


def verify(table: Table, checks: Sequence[Check]) -> None:
    """Raise :class:`UserError` for the first wrong row, in the order of the files; one pass over the table."""
    if not checks:
        return
    firsts = ", ".join(f"min(rowid) FILTER (WHERE {check.bad})" for check in checks)
    row = one_row(table.connection, f"SELECT {firsts} FROM rows")
    found = [(first, position) for position, first in enumerate(row) if first is not None]
    if found:
        first, position = min(found)
        check = checks[position]
        value = one_row(
            table.connection, f"SELECT CAST({table.column(check.column)} AS VARCHAR) FROM rows WHERE rowid = {first}"
        )
        shown = "no value" if value[0] is None else repr(value[0][:80])
        raise UserError(f"{table.place(first)}: column {check.column!r} holds {shown}, {check.problem}.")


def _number_checks(table: Table, name: str, reader: str, otherwise: str) -> list[Check]:
    _refuse_lists(table, name, reader)
    column, value = table.column(name), number(table, name)
    type_ = table.types[name]
    if not type_.startswith((*_NUMBERS, *_TIMES, "VARCHAR", "U")) or type_ == "UUID":
        raise UserError(
            f"{table.files[0]}: column {name!r} has type {type_}, which {reader} cannot read; write numbers."
        )
    remedy = f"correct it, name the text in source.nulls, or {otherwise}"
    finite = f"isfinite({value}) AND abs({value}) <= {LARGEST!r}"
    problem = f"which {reader} cannot read: it is no finite number below {LARGEST:g}; {remedy}"
    return [Check(f"{column} IS NOT NULL AND ({value} IS NULL OR NOT ({finite}))", name, problem)]


def _refuse_lists(table: Table, name: str, reader: str) -> None:
    type_ = table.types[name]
    if is_list(type_) or type_.startswith(("STRUCT", "MAP", "UNION")):
        raise UserError(
            f"{table.files[0]}: column {name!r} has type {type_}, which {reader} cannot read; write single values."
        )
