"""Random numbers as pure functions of a seed and keys: independent of row order, batching and threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

STEP = np.uint64(0x9E3779B97F4A7C15)


def bits(seed: int, *keys: NDArray[np.integer] | int) -> Bits:
    """Random bits (uint64), 64 for every element of the ``keys``, which are integers or arrays of one shape.

    Every key goes through the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), chained.
    """
    with np.errstate(over="ignore"):  # modulo 2**64 on purpose
        state = _next(np.asarray([seed], dtype=np.int64).view(np.uint64))
        for key in keys:
            values = np.asarray(key, dtype=np.int64).view(np.uint64)
            state = _next(state ^ (values + STEP) * np.uint64(0xD1342543DE82EF95))
    return state


def uniform(seed: int, *keys: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) with 53 bits, one for every element of the ``keys``."""
    return (bits(seed, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def finish(z: Bits) -> Bits:
    """Finaliser of SplitMix64 without its step: a permutation of uint64; overflow wraps."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _next(z: Bits) -> Bits:
    return finish(z + STEP)
