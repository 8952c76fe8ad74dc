"""Synthetic data: parsing the options' notations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.synthetic.world import Bag

Value = TypeVar("Value")

LARGEST_VOCABULARY = 1 << 40
LARGEST_BAG = 10_000


def vocabulary_sizes(text: str, tables: int) -> tuple[int, ...]:
    """Vocabulary size of every table from ``1000``, ``1000..1000000`` (even on a log scale) or ``1000,500`` (in turn)."""
    if ".." in text:
        low, high = (_size(part, text) for part in _ends(text, "--vocab"))
        if low > high:
            raise UserError(f"prepare synthetic: --vocab {text}: the first size is larger than the last; swap them.")
        step = math.log(high / low) / max(tables - 1, 1)
        return tuple(round(low * math.exp(step * table)) for table in range(tables))
    return _in_turn([_size(part, text) for part in text.split(",")], tables)


def bags(text: str, tables: int) -> tuple[Bag, ...]:
    """Bags of every table from ``1``, ``0..5`` (uniform) or ``poisson:3``, or several of these with commas, in turn."""
    return _in_turn([_bag(part.strip(), text) for part in text.split(",")], tables)


def per_task(option: str, text: str, tasks: int, low: float, high: float) -> tuple[float, ...]:
    """Comma-separated numbers between ``low`` and ``high`` (both excluded), in turn, for every task."""
    values = [_number(part, option, text) for part in text.split(",")]
    for value in values:
        if not low < value < high:
            raise UserError(f"prepare synthetic: {option} {text}: {value:g} is not between {low:g} and {high:g}.")
    return _in_turn(values, tasks)


def split_rows(text: str, rows: int) -> dict[str, int]:
    """Number of rows of each split from ``train=0.8,test=0.2``; they add up to ``rows``."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not equals or not name.replace("_", "").isalnum() or name.startswith("_") or name in shares:
            raise UserError(
                f"prepare synthetic: --splits {text}: {part.strip()!r} does not fit; write each split once, as NAME=SHARE, "
                "such as train=0.8,validation=0.1,test=0.1."
            )
        shares[name] = _number(number, "--splits", text)
    if "train" not in shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(
            f"prepare synthetic: --splits {text}: there must be a split train, and shares above 0 that add up to 1."
        )
    ends, total = [], 0.0
    for share in shares.values():
        total += share
        ends.append(round(rows * total))
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for name, count in zip(shares, counts, strict=True):
        if count == 0:
            raise UserError(f"prepare synthetic: --splits {text}: {name} gets none of the {rows} rows; raise --rows.")
    return dict(zip(shares, counts, strict=True))


def _bag(part: str, text: str) -> Bag:
    option = "--ids-per-bag"
    if part.startswith("poisson:"):
        mean = _number(part.removeprefix("poisson:"), option, text)
        if not 0 < mean <= LARGEST_BAG:
            raise UserError(
                f"prepare synthetic: {option} {text}: the mean {mean:g} is not between 0 and {LARGEST_BAG}."
            )
        return Bag(poisson=mean)
    ends = _ends(part, option) if ".." in part else (part, part)
    low, high = (_integer(end, option, text) for end in ends)
    if not 0 <= low <= high <= LARGEST_BAG or high == 0:
        raise UserError(
            f"prepare synthetic: {option} {text}: {part!r} is no number of ids; name a number, a range such as 0..5 or "
            f"poisson:MEAN, up to {LARGEST_BAG}."
        )
    return Bag(low, high)


def _size(part: str, text: str) -> int:
    size = _integer(part, "--vocab", text)
    if not 2 <= size <= LARGEST_VOCABULARY:
        raise UserError(
            f"prepare synthetic: --vocab {text}: {size} is not between 2 (unknown and one more) and {LARGEST_VOCABULARY}."
        )
    return size


def _ends(text: str, option: str) -> tuple[str, str]:
    low, _, high = text.partition("..")
    if "," in text or ".." in high:
        raise UserError(
            f"prepare synthetic: {option} {text}: this is no range; write it as LOW..HIGH, such as 10..1000."
        )
    return low, high


def _in_turn(values: list[Value], count: int) -> tuple[Value, ...]:
    return tuple(values[position % len(values)] for position in range(count))


def _integer(part: str, option: str, text: str) -> int:
    return int(_convert(int, part.replace("_", ""), option, text))


def _number(part: str, option: str, text: str) -> float:
    value = float(_convert(float, part, option, text))
    if not math.isfinite(value):
        raise UserError(f"prepare synthetic: {option} {text}: {part.strip()!r} is not finite; write a number.")
    return value


def _convert(kind: Callable[[str], Value], part: str, option: str, text: str) -> Value:
    try:
        return kind(part.strip())
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise UserError(f"prepare synthetic: {option} {text}: {part.strip()!r} is no {what}; write one.") from None
