"""Threads of a process where nobody said how many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dlrm_mtl.core import processes


@pytest.fixture
def six_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    monkeypatch.setattr(processes, "available_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("six_threads")
@pytest.mark.parametrize(
    ("variables", "wanted"), [({}, 4), ({"LOCAL_WORLD_SIZE": "2"}, 2), ({"OMP_NUM_THREADS": "6"}, 6)]
)
def test_threads_do_not_exceed_the_share(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.limit_threads()
    assert torch.get_num_threads() == wanted


@pytest.mark.usefixtures("six_threads")
def test_fewer_threads_stay() -> None:
    torch.set_num_threads(1)
    processes.limit_threads()
    assert torch.get_num_threads() == 1
