"""Conditions on the columns of a table, such as ``rating >= 4 and genre != "News"``, as SQL.

The grammar, from loosest to tightest::

    condition   := all ("or" all)*
    all         := single ("and" single)*
    single      := "not" single | "(" condition ")" | column test
    test        := ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                 | ["not"] "in" "(" value ("," value)* ")" | "is" ["not"] "null"
    column      := name | `any name in backticks`
    value       := number | "text" | 'text'

A comparison with a number reads the column as a number, a comparison with a text as text. Nulls work as in SQL: a
comparison with null is null. Only this grammar leads from a condition to SQL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from dlrm_mtl.core.sql import quote

COMPARISONS = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
DEEPEST = 50
"""Largest depth of parentheses and negations."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<text>"[^"]*"|'[^']*')
    |(?P<quoted>`[^`]+`)
    |(?P<word>[^\W\d]\w*)
    |(?P<symbol>==|!=|<>|<=|>=|[=<>(),]))""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "is", "null"}


@dataclass(frozen=True)
class Condition:
    """A parsed condition, with its columns."""

    text: str
    sql: Callable[[Callable[[str], str], Callable[[str], str]], str]
    """Function that gives the SQL, from two functions for the SQL of a column as a number and as text."""
    numbers: frozenset[str]
    """Columns that are compared with numbers."""
    texts: frozenset[str]
    """Columns that are compared with texts, or tested for null."""
    literals: frozenset[tuple[str, str]]
    """Columns, each with a text of a comparison."""

    @property
    def columns(self) -> frozenset[str]:
        """All columns of the condition."""
        return self.numbers | self.texts


def parse_condition(text: str) -> Condition:
    """Parse a condition; raises ValueError with the place of the mistake."""
    parser = _Parser(_tokens(text))
    tree = parser.condition(0)
    if parser.kind != "end":
        raise ValueError(f"{parser.here} is left over after the condition: join two conditions by 'and' or 'or'")
    return Condition(text, tree, frozenset(parser.numbers), frozenset(parser.texts), frozenset(parser.literals))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"{text[position:].strip()[:20]!r} cannot be read: columns are compared with numbers or texts"
            )
        kind = str(match.lastgroup)
        token = match.group(kind)
        if kind == "word" and token.lower() in _WORDS:
            kind, token = "symbol", token.lower()
        tokens.append((kind, token))
        position = match.end()
    return [*tokens, ("end", "the end")]


_Number = Callable[[str], str]
_Sql = Callable[[_Number, _Number], str]


@dataclass
class _Parser:
    tokens: list[tuple[str, str]]
    position: int = 0
    numbers: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    literals: set[tuple[str, str]] = field(default_factory=set)

    @property
    def kind(self) -> str:
        return self.tokens[self.position][0]

    @property
    def token(self) -> str:
        return self.tokens[self.position][1]

    @property
    def here(self) -> str:
        return self.token if self.kind == "end" else repr(self.token)

    def take(self, *symbols: str) -> str | None:
        """Consume the next token and return it if it is one of ``symbols``."""
        if self.kind == "symbol" and self.token in symbols:
            self.position += 1
            return self.tokens[self.position - 1][1]
        return None

    def expect(self, symbol: str) -> None:
        if not self.take(symbol):
            raise ValueError(f"{symbol!r} is missing before {self.here}")

    def condition(self, depth: int) -> _Sql:
        return self.joined("or", lambda: self.joined("and", lambda: self.single(depth)))

    def joined(self, word: str, part: Callable[[], _Sql]) -> _Sql:
        parts = [part()]
        while self.take(word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        return lambda number, text: "(" + f" {word.upper()} ".join(one(number, text) for one in parts) + ")"

    def single(self, depth: int) -> _Sql:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} parentheses are open at {self.here}")
        if self.take("not"):
            inner = self.single(depth + 1)
            return lambda number, text: f"(NOT {inner(number, text)})"
        if self.take("("):
            inner = self.condition(depth + 1)
            self.expect(")")
            return inner
        return self.test(self.column())

    def column(self) -> str:
        if self.kind not in ("word", "quoted"):
            wrong = " (a column stands on the left, a number or text on the right)" if self.kind != "end" else ""
            raise ValueError(f"a column's name is expected before {self.here}{wrong}")
        self.position += 1
        return self.tokens[self.position - 1][1].strip("`")

    def test(self, column: str) -> _Sql:
        if self.take("is"):
            negated = "NOT " if self.take("not") else ""
            self.expect("null")
            self.texts.add(column)
            return lambda number, text: f"({text(column)} IS {negated}NULL)"
        negated = "NOT " if self.take("not") else ""
        if self.take("in"):
            self.expect("(")
            values = [self.value(column)]
            while self.take(","):
                values.append(self.value(column))
            self.expect(")")
            if len({is_number for _, is_number in values}) > 1:
                raise ValueError(f"the values after {column!r} in are numbers and texts: use one kind")
            read, listed = self.reader(column, values[0][1]), ", ".join(value for value, _ in values)
            return lambda number, text: f"({read(number, text)} {negated}IN ({listed}))"
        operator = None if negated else self.take(*COMPARISONS)
        if operator is None:
            raise ValueError(f"a comparison such as == is expected after {column!r}, not {self.here}")
        value, is_number = self.value(column)
        read = self.reader(column, is_number)
        return lambda number, text: f"({read(number, text)} {COMPARISONS[operator]} {value})"

    def reader(self, column: str, is_number: bool) -> _Sql:
        (self.numbers if is_number else self.texts).add(column)
        return lambda number, text: number(column) if is_number else text(column)

    def value(self, column: str) -> tuple[str, bool]:
        """SQL of a value that ``column`` is compared with, and True for a number."""
        kind, token = self.kind, self.token
        if kind == "number":
            self.position += 1
            if not math.isfinite(float(token)):
                raise ValueError(f"{token} is too large for a number")
            return f"CAST({quote(token)} AS DOUBLE)", True
        if kind == "text":
            self.position += 1
            self.literals.add((column, token[1:-1]))
            return quote(token[1:-1]), False
        remedy = " (texts stand in quotes)" if kind in ("word", "quoted") else ""
        raise ValueError(f"a number or a text is expected, not {self.here}{remedy}")
