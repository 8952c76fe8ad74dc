"""Updates with state per element, in C++, for tables in CPU memory: one call for all tables.

Results are those of the rules' own functions bit for bit, and depend neither on threads nor on the instruction set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.layout import ELEMENT_KINDS, ElementUpdate, RowGradients, TableGroup


def apply(
    group: TableGroup,
    states: Sequence[Tensor],
    gradients: RowGradients,
    mean_squares: Tensor,
    rule: ElementUpdate,
    rates: Sequence[float],
    step: int,
) -> None:
    """Update weights and states of the touched rows in place.

    Args:
        group: the tables.
        states: the rule's states, float32, in its order: [sum of R_t] per row, [sum of R_t * D_t] per element.
        gradients: gradients of the touched rows.
        mean_squares: [U] float32 mean of the squares of each row's gradient over the whole row.
        rule: the update.
        rates: [T] learning rate of each table.
        step: number of this step, from 1.

    Raises:
        ValueError: the rule is unknown, or states or rates do not fit the tables.
    """
    if rule.kind not in ELEMENT_KINDS:
        raise ValueError(f"unknown rule {rule.kind!r}; known are {', '.join(ELEMENT_KINDS)}")
    if len(rates) != group.tables:
        raise ValueError(f"{len(rates)} learning rates for {group.tables} tables")
    rows, elements = int(group.row_offsets[-1]), group.weights.numel()
    sizes = {"adagrad": [elements], "rowwise_adam": [rows, elements]}.get(rule.kind, [elements, elements])
    for state, size in zip(states, sizes, strict=True):
        if state.dtype != torch.float32 or state.numel() != size or not state.is_contiguous():
            raise ValueError(f"a state is {list(state.shape)} {state.dtype}; {size} float32 in a row are needed")
    of_row, of_elements = (states[0], states[1:]) if rule.kind == "rowwise_adam" else (None, states)
    first, second = rule.betas
    lr = torch.tensor(rates, dtype=torch.float32)
    update = _ElementUpdate(
        ELEMENT_KINDS.index(rule.kind),
        of_elements[0].data_ptr(),
        of_elements[1].data_ptr() if len(of_elements) > 1 else None,
        None if of_row is None else of_row.data_ptr(),
        lr.data_ptr(),
        # Differences and powers in double precision, then rounded once, as PyTorch does with Python's numbers.
        *(first, 1 - first, 1 - first**step, second, 1 - second, 1 - second**step),
        *(rule.eps, rule.beta, rule.l1, rule.l2),
    )
    touched = cpu._touched(cpu._shared(group, gradients), mean_squares)
    cpu._call("dlrm_mtl_apply_elements", cpu._tables(group), touched, update)


class _ElementUpdate(ctypes.Structure):
    """See ElementUpdate in csrc/layout.h."""

    _fields_ = [
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("first_state", "second_state", "row_state", "lr")),
        *(
            (name, ctypes.c_float)
            for name in (
                "first",
                "rest_of_first",
                "first_correction",
                "second",
                "rest_of_second",
                "second_correction",
                "eps",
                "beta",
                "l1",
                "l2",
            )
        ),
    ]
