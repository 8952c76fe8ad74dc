"""Measurements between processes, and what follows from them."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dlrm_mtl.core.processes import this_process
from dlrm_mtl.job_check import network
from dlrm_mtl.job_check.network import Pair
from tests.processes import run_processes


@pytest.mark.parametrize("count", range(1, 12))
def test_every_rank_meets_every_other_one_once(count: int) -> None:
    every = list(network.rounds(count))
    met = [pair for partners in every for pair in partners.items()]
    assert sorted(met) == sorted(itertools.permutations(range(count), 2))
    assert len(every) == max(0, count - 1 + count % 2)


def _measured(rank: int) -> Any:
    process = this_process()
    if rank == 2:
        begun = time.time
        time.time = lambda: begun() + 90.0
    collectives = network.check_collectives(process)
    return network.clock_offsets(process, [0, 2]), network.measure_pairs(process), collectives


def test_clocks_and_pairs_of_three_processes() -> None:
    results = run_processes(3, _measured)
    clocks, pairs, collectives = results[0]
    assert list(clocks) == [0, 2]
    assert clocks[0] == 0.0
    assert clocks[2] == pytest.approx(90.0, abs=0.5)
    assert sorted(pair.ranks for pair in pairs) == [(0, 1), (0, 2), (1, 2)]
    assert all(pair.bandwidth > 0 and pair.latency > 0 for pair in pairs)
    assert [result[1] for result in results] == [pairs] * 3
    assert collectives.problem == ""
    assert min(collectives.all_to_all, collectives.all_reduce) > 0


def _few(rank: int) -> Any:
    return len(network.measure_pairs(this_process(), seconds=0.0))


def test_pairs_are_a_sample_where_time_is_short() -> None:
    assert run_processes(4, _few) == [2, 2, 2, 2]


def _spoilt(rank: int, name: str) -> str:
    original = getattr(dist, name)

    def spoil(output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        done = original(output, *arguments, **options)
        if rank == 1:
            output[-1] += 1
        return done

    setattr(dist, name, spoil)
    return network.check_collectives(this_process()).problem


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("all_reduce", "the all-reduce gave process 1 a wrong sum"),
        ("all_to_all_single", "the all-to-all brought process 1 wrong values from process 1"),
    ],
)
def test_wrong_results_are_found_on_every_process(name: str, sentence: str) -> None:
    assert run_processes(2, _spoilt, name) == [sentence] * 2


def test_one_slow_host_is_told_from_those_it_slows_down() -> None:
    hosts = ["a", "a", "b", "c", "d"]
    pairs = [
        Pair((one, other), 1e-4, 1e6 if "c" in (hosts[one], hosts[other]) else 8e6 if one else 1e7)
        for one, other in itertools.combinations(range(5), 2)
    ]
    best = network.best_links(pairs, hosts)
    assert best == {"a": 1e7, "b": 1e7, "c": 1e6, "d": 1e7}
    assert network.slow_host(best) == ("c", 10.0)
    assert network.slow_host({"a": 1e7, "b": 1e6}) is None
