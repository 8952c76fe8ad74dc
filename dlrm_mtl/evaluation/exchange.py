"""Rows sorted over all processes, in memory proportional to a process's share of them.

The keys of all rows are cut into ranges with about equally many different keys, one for each process, by samples of every
process's sorted keys (parallel sorting by regular sampling, Shi and Schaeffer, 1992). Equal keys are merged before they are
sent, so ties do not pile up on one process.

Shapes: W processes, N rows of this process, k columns of keys, v columns of values.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.metrics.sorted_rows import SortedRows, merge_rows

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Numbers = TypeVar("Numbers", NDArray[np.int64], NDArray[np.float64])


def samples_of(processes: int) -> int:
    """Keys that a process contributes to the choice of ranges: a range then has at most 1/8 more keys than its share."""
    return 8 * processes + 64


def sort_over_processes(keys: Ids, values: Floats) -> SortedRows:
    """Sort the rows of all processes by their keys, and add up the values of equal ones. Every process must call this.

    Args:
        keys: [N, k].
        values: [N, v].

    Returns:
        This process's range of keys; they are above those of lower ranks, and each key is on one process only.
    """
    own = merge_rows(keys, values)
    processes = dist.get_world_size()
    if processes == 1:
        return own
    stops = _stops(own.keys, _splitters(own.keys, processes))
    rows = np.concatenate([own.keys, own.values.view(np.int64)], axis=1)
    received = exchange_rows(rows, np.diff(stops, prepend=0, append=len(rows)))
    width = keys.shape[1]
    return merge_rows(received[:, :width], np.ascontiguousarray(received[:, width:]).view(np.float64))


def exchange_rows(rows: Ids, counts: Ids) -> Ids:
    """Send the first ``counts[0]`` of the ``rows`` [N, c] to process 0, the next to process 1, and so on.

    Returns:
        Rows received, in the order of the senders' ranks.
    """
    sending = torch.from_numpy(np.ascontiguousarray(counts, np.int64))
    arriving = torch.empty_like(sending)
    dist.all_to_all_single(arriving, sending)
    width = rows.shape[1]
    received = torch.empty(int(arriving.sum()), width, dtype=torch.int64)
    dist.all_to_all_single(received, torch.from_numpy(np.ascontiguousarray(rows)), arriving.tolist(), sending.tolist())
    return received.numpy()


def gather_arrays(array: Numbers) -> Numbers:
    """Arrays of one shape of all processes, [W, ...], on every process."""
    own = torch.from_numpy(np.ascontiguousarray(array))
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    result: Numbers = torch.stack(gathered).numpy()
    return result


def _splitters(keys: Ids, processes: int) -> Ids:
    """[W - 1, k], the last keys of all ranges but the last; the same on every process."""
    count = samples_of(processes)
    places = (np.arange(1, count + 1) * len(keys)) // (count + 1)
    sample = keys[places] if len(keys) else np.zeros((count, keys.shape[1]), np.int64)
    counted = np.concatenate([sample, np.full((count, 1), len(keys))], axis=1)
    everyone = gather_arrays(counted).reshape(-1, counted.shape[1])
    everyone = everyone[everyone[:, -1] > 0]  # a process without rows has no say
    if not len(everyone):
        return np.zeros((processes - 1, keys.shape[1]), np.int64)
    everyone = everyone[np.lexsort(everyone[:, :-1].T[::-1])]
    reached = np.cumsum(everyone[:, -1])
    wanted = reached[-1] * np.arange(1, processes) // processes
    return everyone[np.searchsorted(reached, wanted), :-1]


def _stops(keys: Ids, splitters: Ids) -> Ids:
    """[W - 1], number of the sorted ``keys`` [N, k] up to each splitter."""
    stops = np.zeros(len(splitters), np.int64)
    for number, splitter in enumerate(splitters):
        low, high = 0, len(keys)
        for place, value in enumerate(splitter):
            column = keys[low:high, place]
            last = place == len(splitter) - 1
            stop = low + int(np.searchsorted(column, value, side="right"))
            low, high = (stop if last else low + int(np.searchsorted(column, value, side="left"))), stop
        stops[number] = low
    return stops
