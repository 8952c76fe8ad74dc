"""Hash and initial vector of an id, which depend only on the id."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15


def mix(values: Tensor) -> Tensor:
    """A permutation of int64 that leaves no pattern: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def hashed(ids: Tensor, count: int) -> Tensor:
    """A number from 0 to ``count`` - 1 for each of the int64 ``ids``, evenly spread; ``count`` is at most 2^31."""
    return (_shifted(mix(ids ^ _signed(_GAMMA)), 32) * count) >> 32


def initial_rows(ids: Tensor, key: str, std: float, column: int, columns: int) -> Tensor:
    """Draws from N(0, std^2), [N, columns] float32, for columns ``column`` onwards of the rows of ``ids`` [N] int64.

    A value depends only on ``key``, the id and the column (two hashes, then Box and Muller's method in double precision).
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    numbers = 2 * torch.arange(column, column + columns, device=ids.device)
    start = mix(ids ^ _signed(seed)).unsqueeze(1)
    first, second = (_uniform(mix(start + (numbers + which) * _signed(_GAMMA))) for which in (1, 2))
    normal = (-2.0 * first.log()).sqrt() * (2.0 * math.pi * second).cos()
    return (std * normal).float()


def _uniform(values: Tensor) -> Tensor:
    """Float64 in (0, 1) from int64."""
    return (_shifted(values, 11).double() + 0.5) * 2.0**-53


def _shifted(values: Tensor, bits: int) -> Tensor:
    """``values`` shifted right as unsigned numbers."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
