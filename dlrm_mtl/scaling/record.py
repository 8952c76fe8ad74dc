"""Record of a step's collectives: kind, reason, processes and bytes of each, counted from the tensors themselves.

Works with any backend: every collective of PyTorch, those of DDP's buckets in C++ included, passes through its dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlrm_mtl.core.phases import GRADIENT_EXCHANGE, PhaseClock
from dlrm_mtl.scaling.work import Collective, Kind, Phase, Span

KINDS: dict[str, Kind] = {
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
}
"""Operations of PyTorch's namespace c10d that a step takes part in."""


_active: list[CollectiveRecorder] = []


def note(kind: Kind, given: Any, output: Any, group: dist.ProcessGroup) -> None:
    """Tell all recorders of a collective of a process group that is written in Python, which the dispatcher does not see."""
    for recorder in _active:
        recorder.add(kind, given, output, group)


class CollectiveRecorder(TorchDispatchMode):
    """A context that appends every collective of this thread to :attr:`collectives`, in order.

    The reason is told by the phases of the training step. Every operation takes a detour through Python meanwhile, so a step
    that is recorded tells nothing about time. One clock of phases can run at a time, and this context has one.

    Args:
        per_host: number of processes of a host, which are neighbours.
    """

    def __init__(self, per_host: int) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self._per_host = per_host
        self._clock = PhaseClock(torch.device("cpu"))

    def __enter__(self) -> CollectiveRecorder:
        """Begin to record."""
        _active.append(self)
        self._clock.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the record."""
        super().__exit__(*error)
        self._clock.__exit__(None, None, None)
        _active.remove(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note ``func``, and run it."""
        name = func.overloadpacket.__name__
        if func.namespace == "c10d" and name != "barrier":
            self._add(name, args)
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, arguments: Sequence[Any]) -> None:
        if name not in KINDS:
            raise ValueError(f"a step takes part in c10d.{name}, which the record has no kind for")
        group = next(_group(each) for each in arguments if isinstance(each, torch.ScriptObject))
        output, given = (arguments[0],) * 2 if name.startswith("allreduce") else arguments[:2]
        self.add(KINDS[name], given, output, group)

    def add(self, kind: Kind, given: Any, output: Any, group: dist.ProcessGroup) -> None:
        """Append a collective of ``group`` with these input and output tensors, which may be nested in lists."""
        span, phase = self._span(group), self._phase(kind)
        self.collectives.append(Collective(kind, phase, span, _bytes(given), _bytes(output)))

    def _phase(self, kind: Kind) -> Phase:
        phases = self._clock.current
        if any(each == GRADIENT_EXCHANGE or each.startswith("backward") for each in phases):
            return "dense" if kind == "all_reduce" else "gradients"
        if "forward" in phases:
            return "ids" if "input exchange" in phases else "pooled"
        return "step"

    def _span(self, group: dist.ProcessGroup) -> Span:
        ranks = dist.get_process_group_ranks(group)
        if len(ranks) == dist.get_world_size():
            return "world"
        hosts = {rank // self._per_host for rank in ranks}
        if len(hosts) == 1:
            return "host"
        return "across_hosts" if len(hosts) == len(ranks) else "world"


def _group(argument: torch.ScriptObject) -> dist.ProcessGroup:
    return dist.ProcessGroup.unbox(argument)


def _bytes(value: Any) -> int:
    """Bytes of all tensors in ``value``, a tensor or nested lists of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(each) for each in value)
