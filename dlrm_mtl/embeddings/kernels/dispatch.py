"""Choice of the kernels for a device."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Protocol, cast

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu, reference
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup, Update

VARIABLE = "DLRM_MTL_KERNELS"
"""Environment variable: ``reference`` for the kernels in plain PyTorch, ``native`` to fail instead of falling back to them."""


class Kernels(Protocol):
    """Interface of every module of kernels; see :mod:`reference` for the meaning."""

    def lookup(
        self, group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None
    ) -> Tensor: ...

    def lookup_unpooled(self, group: TableGroup, indices: Tensor, lengths: list[int]) -> Tensor: ...

    def sort_pooled(
        self, group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None
    ) -> object | None: ...

    def collect(
        self,
        group: TableGroup,
        indices: Tensor,
        offsets: Tensor,
        bags: int,
        gradient: Tensor,
        bag_weights: Tensor | None = None,
        occurrences: object | None = None,
    ) -> RowGradients: ...

    def collect_unpooled(
        self, group: TableGroup, indices: Tensor, lengths: list[int], gradient: Tensor
    ) -> RowGradients: ...

    def merge(self, group: TableGroup, parts: list[RowGradients]) -> RowGradients: ...

    def grams(self, group: TableGroup, gradients: RowGradients, tasks: int) -> Tensor: ...

    def factors(
        self, group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
    ) -> Tensor: ...

    def row_factors(
        self, group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
    ) -> Tensor: ...

    def largest_moves(
        self, group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
    ) -> Tensor: ...

    def apply(
        self,
        group: TableGroup,
        state: Tensor,
        gradients: RowGradients,
        mean_squares: Tensor,
        factor: Tensor,
        rule: Update,
        lr: float,
    ) -> None: ...


def kernels_for(device: torch.device | str) -> Kernels:
    """Fastest kernels for tables on a device.

    Raises:
        ValueError: the environment variable DLRM_MTL_KERNELS has another value than ``reference`` and ``native``.
        RuntimeError: it asks for native kernels and there are none.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "reference", "native"):
        raise ValueError(f"{VARIABLE} is {wanted!r}; it can be reference or native, or empty for the fastest")
    if wanted == "reference":
        return reference
    native, reason = _native(torch.device(device).type)
    if native is None and wanted == "native":
        raise RuntimeError(f"{VARIABLE} asks for native kernels, but {reason}")
    return native or reference


@cache
def _native(device_type: str) -> tuple[Kernels | None, str | None]:
    """Native kernels for a type of device, or the reason why there are none."""
    if device_type == "cpu":
        reason = cpu.native_status()
        return (None, reason) if reason else (cpu, None)
    if device_type == "cuda":
        if find_spec("triton") is None:
            return None, "those for CUDA need Triton, which is not installed"
        from dlrm_mtl.embeddings.kernels import cuda

        # The functions missing there take too little time to need a kernel.
        names = [name for name in vars(Kernels) if not name.startswith("_")]
        functions = {name: getattr(cuda, name, getattr(reference, name)) for name in names}
        return cast(Kernels, SimpleNamespace(**functions)), None
    return None, f"there are none for {device_type}"
