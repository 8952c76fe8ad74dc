"""YAML is read in one way, and what means two things is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import read_yaml
from dlrm_mtl.core.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name: yes", {"name": "yes"}),
        ("[on, off, no, NO, y, n]", ["on", "off", "no", "NO", "y", "n"]),
        ("[true, False]", [True, False]),
        ("2024-03-02", "2024-03-02"),
        ("2024-03-02T00:30:00+09:00", "2024-03-02T00:30:00+09:00"),
        ("18:30:00", "18:30:00"),
        ("[010, 1_000, 0x1f, -3, 0]", ["010", 1000, 31, -3, 0]),
        ("[1.5, .inf, null, ~]", [1.5, float("inf"), None, None]),
        ("{a: &x {b: 1}, c: *x}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("{<<: [{a: 1}, {a: 2, b: 2}], c: 3}", {"a": 1, "b": 2, "c": 3}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands here and in line 1"),
        ("x:\n  a: 1\n  'a': 3", "line 3, column 3: the key 'a'"),
        ("[{a: 1, a: 1}]", "line 1, column 9: the key 'a'"),
        ("{1: a, 1.0: b}", "the key 1.0"),
        ("{<<: {a: 1}, <<: {b: 1}}", "the key '<<'"),
        ("a: &a [*a]", "an alias holds itself"),
        ("[" * 100 + "]" * 100, "more than 60"),
        ("[" * 100_000, "more than 60"),
        ("- " * 5000 + "a", "more than 60"),
        ("a: !!int x", "does not fit its tag"),
        ("a: !!bool maybe", "does not fit its tag"),
        ("a: !!timestamp 2024-99-99", "tag"),
        ("a: " + "9" * 5000, "does not fit its tag"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: [1, 2", "line 1"),
        ("a: \x00", "not YAML"),
    ],
)
def test_mistakes(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"line|place") as error:
        parse_yaml(text)
    assert part in str(error.value)


def test_alias_bombs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(ValueError, match="aliases stand for more than"):
        parse_yaml("\n".join(lines))


def test_a_file_with_a_key_twice_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nseed: 2\n")
    with pytest.raises(
        UserError, match=r"a\.yaml: line 2, column 1: the key 'seed' .*; correct the YAML syntax there\.$"
    ):
        read_yaml(tmp_path / "a.yaml")


TEXT = st.text(
    st.characters(exclude_categories=("C", "Zl", "Zp"))
)  # PyYAML does not read its own control characters back
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_dumped_reads_back(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value
