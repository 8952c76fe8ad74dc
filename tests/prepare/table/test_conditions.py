"""Conditions mean what they say: compared with a plain evaluation in Python, and refused with their place."""

from __future__ import annotations

import re

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.prepare.table.conditions import parse_condition

ROWS: list[dict[str, str | None]] = [
    {"a": a, "b c": b} for a in (None, "0", "1", "2.5", "x") for b in (None, "", "it's", 'say "hi"', "-1")
]


def evaluate(condition: str) -> list[bool | None]:
    parsed = parse_condition(condition)

    def column(name: str) -> str:
        return '"' + name + '"'

    sql = parsed.sql(lambda name: f"TRY_CAST({column(name)} AS DOUBLE)", column)
    values = ", ".join(
        "(" + ", ".join("NULL" if v is None else "'" + v.replace("'", "''") + "'" for v in row.values()) + ")"
        for row in ROWS
    )
    with duckdb.connect() as connection:
        found = connection.execute(f'SELECT {sql} FROM (VALUES {values}) t("a", "b c")').fetchall()
    return [row[0] for row in found]


def number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def test_comparisons() -> None:
    a, b = [number(row["a"]) for row in ROWS], [row["b c"] for row in ROWS]
    assert evaluate("a >= 1") == [None if x is None else x >= 1 for x in a]
    assert evaluate("a in (0, 2.5)") == [None if x is None else x in (0, 2.5) for x in a]
    assert evaluate("""`b c` == "it's" """) == [None if x is None else x == "it's" for x in b]
    assert evaluate("""`b c` != 'say "hi"'""") == [None if x is None else x != 'say "hi"' for x in b]
    assert evaluate("`b c` is null") == [x is None for x in b]
    assert evaluate("not (`b c` is not null)") == [x is None for x in b]
    assert evaluate("`b c` not in ('', 'x')") == [None if x is None else x not in ("", "x") for x in b]
    assert evaluate("a is null or a < 2") == [
        True if row["a"] is None else (None if x is None else x < 2) for row, x in zip(ROWS, a, strict=True)
    ]


def test_and_binds_tighter_than_or() -> None:
    first = "a == 0 or a == 1 and `b c` is null"
    assert evaluate(first) == evaluate("a == 0 or (a == 1 and `b c` is null)")
    assert evaluate(first) != evaluate("(a == 0 or a == 1) and `b c` is null")


def test_columns_by_use() -> None:
    parsed = parse_condition("a > 1 and b == 'x' and `c d` in (1) or e is null")
    assert parsed.numbers == {"a", "c d"}
    assert parsed.texts == {"b", "e"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "before the end"),
        ("a", "a comparison such as == is expected after 'a', not the end"),
        ("a = ", "a number or a text is expected, not the end"),
        ("a == b", "texts stand in quotes"),
        ("1 < a", "a column stands on the left"),
        ("a == 1 b == 2", "'b' is left over"),
        ("(a == 1", "')' is missing"),
        ("a in (1, 'x')", "numbers and texts"),
        ("a == 1; drop table rows", "'; drop table rows' cannot be read"),
        ("a == 1e999", "too large"),
        ("not " * 60 + "a == 1", "more than 50"),
        ("a not == 1", "a comparison such as =="),
    ],
)
def test_mistakes_name_their_place(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        parse_condition(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["a", "`b c`", "==", "<", "(", ")", "and", "or", "not", "in", "is", "null", "1", "'x'", ",", ";", "--"]
        )
    )
)
def test_nothing_but_the_grammar_reaches_sql(words: list[str]) -> None:
    try:
        parse_condition(" ".join(words))
    except ValueError:
        return
    evaluate(" ".join(words))
