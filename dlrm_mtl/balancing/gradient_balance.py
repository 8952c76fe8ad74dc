"""Gradient balancing in a trainer of plain PyTorch.

balance = GradientBalance(MetaBalanceConfig(target="buy"), shared=model.shared.parameters(), tasks=["buy", "cart"])
balance.backward([loss_buy, loss_cart])
optimizer.step()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mtl.balancing.base import AnyBalancingConfig
from dlrm_mtl.balancing.config import build_balancing
from dlrm_mtl.balancing.sequence import BalanceReport, TensorInfo
from dlrm_mtl.core.gram import gram_of, not_finite_tasks

Named = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class GradientBalance(nn.Module):
    """Replacement of ``sum(losses).backward()``: shared parameters get the balanced gradient, all others the plain sum.

    Each task costs one backward pass over the graph that all losses share, and memory for one more gradient of the shared
    parameters. The buffers hold the methods' state: save ``state_dict()`` with the model's. Losses must be unscaled: apply
    a gradient scaler's factor afterwards, or averages between steps follow the scaler.

    Args:
        config: configuration of a method.
        shared: parameters whose gradients are balanced, or pairs of name and parameter.
        tasks: names of the tasks, in the order of their losses.
        tables: embedding tables among ``shared``, for methods with granularity ``group``.
        process_group: processes over which losses and every task's gradients are averaged before comparison. The model must
            not be wrapped in DistributedDataParallel, which reduces gradients only after they are summed over tasks.
        own: all other parameters. By default they are found in the graph of the losses. Required with more than one
            process, because processes could find different ones.

    Raises:
        ValueError: an argument does not fit.
        UserError: the configuration names a target that is not one of ``tasks``.
    """

    steps: Tensor

    def __init__(
        self,
        config: AnyBalancingConfig,
        shared: Named,
        tasks: Sequence[str],
        *,
        tables: Iterable[Tensor] = (),
        process_group: dist.ProcessGroup | None = None,
        own: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__()
        named = [entry if isinstance(entry, tuple) else (f"shared.{i}", entry) for i, entry in enumerate(shared)]
        wrong = next((name for name, parameter in named if not parameter.requires_grad), None)
        if wrong is not None:
            raise ValueError(f"the shared parameter {wrong!r} does not require a gradient; leave it out.")
        kinds = {id(table) for table in tables}
        self._shared = [parameter for _, parameter in named]
        self._names = [name for name, _ in named]
        known = {id(parameter) for parameter in self._shared}
        self._own = None if own is None else [parameter for parameter in own if id(parameter) not in known]
        self._group = process_group
        self._world = 1 if process_group is None else dist.get_world_size(process_group)
        if self._world > 1 and own is None:
            raise ValueError(
                "own is missing: with several processes, name the parameters that are not shared, "
                "for example own=model.parameters()."
            )
        tensors = [TensorInfo(name, id(parameter) in kinds) for name, parameter in named]
        self.balancing = build_balancing(config, tasks, tensors)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def backward(self, losses: Sequence[Tensor] | Tensor) -> BalanceReport | None:
        """Add gradients to ``.grad`` of all parameters, as ``sum(losses).backward()`` does, balanced for the shared ones.

        Returns None if any task's gradient of the shared parameters is not finite. Then the plain sum is added, which is
        not finite either, so that later checks detect it. The methods' state does not change.

        Args:
            losses: [T] scalars, one for each task.

        Raises:
            ValueError: the number of losses is wrong, or an embedding has sparse gradients.
        """
        tasks = self.balancing.tasks
        if len(losses) != len(tasks):
            raise ValueError(
                f"there are {len(losses)} losses for {len(tasks)} tasks ({', '.join(tasks)}); give each one."
            )
        own = _other_leaves(losses, self._shared) if self._own is None else self._own
        per_task: list[list[Tensor | None]] = []
        sums: list[Tensor | None] = [None] * len(own)
        for i, loss in enumerate(losses):
            found = self._gradients(loss, own, keep=i + 1 < len(losses))
            per_task.append(found[: len(self._shared)])
            for k, gradient in enumerate(found[len(self._shared) :]):
                if gradient is not None:
                    earlier = sums[k]
                    sums[k] = gradient if earlier is None else earlier + gradient
        values = torch.stack([loss.detach() for loss in losses]).double()
        if self._world > 1:
            values = self._average(values, per_task, own, sums)
        columns = [list(column) for column in zip(*per_task, strict=True)]  # T gradients of each shared parameter
        gram = (
            torch.stack([gram_of(column).cpu() for column in columns]) if columns else torch.zeros(0, *2 * [len(tasks)])
        )
        report = None
        weights = torch.ones(len(columns), len(tasks), dtype=torch.float64)
        if not not_finite_tasks(gram, tasks):
            report = self.balancing.step(gram, values, int(self.steps))
            weights = report.coefficients
            self.steps += 1
        with torch.no_grad():
            for parameter, column, coefficients in zip(self._shared, columns, weights.tolist(), strict=True):
                _accumulate(parameter, _combine(column, coefficients))
            for parameter, gradient in zip(own, sums, strict=True):
                _accumulate(parameter, gradient)
        return report

    def after(self, losses: Sequence[Tensor] | Tensor) -> None:
        """Pass the tasks' losses on the same batch after the update to the methods; FAMO needs it, others ignore it."""
        values = torch.stack([loss.detach() for loss in losses]).double()
        if self._world > 1:
            dist.all_reduce(values, group=self._group)
            values /= self._world
        self.balancing.after(values)

    def _gradients(self, loss: Tensor, own: list[Tensor], keep: bool) -> list[Tensor | None]:
        """Gradients of one task with respect to the shared and then the other parameters."""
        if not loss.requires_grad:  # a task with nothing to learn from
            return [None] * (len(self._shared) + len(own))
        found: list[Tensor | None] = list(
            torch.autograd.grad(loss, [*self._shared, *own], retain_graph=keep, allow_unused=True)
        )
        for k, gradient in enumerate(found):
            if gradient is not None and gradient.layout != torch.strided:
                name = (
                    self._names[k] if k < len(self._shared) else f"of shape {list(gradient.shape)} that is not shared"
                )
                raise ValueError(
                    f"the parameter {name} has sparse gradients; build its embedding with sparse=False, or use this project's "
                    "sharded tables, which balance the gradients of touched rows alone (docs/balancing.md)."
                )
        return found

    def _average(
        self, losses: Tensor, per_task: list[list[Tensor | None]], own: list[Tensor], sums: list[Tensor | None]
    ) -> Tensor:
        """Average everything over the processes, in place; return the losses."""
        dist.all_reduce(losses, group=self._group)
        everything = [*per_task, sums]
        used = [torch.tensor([gradient is not None for gradient in row], dtype=torch.int32) for row in everything]
        flags = torch.cat(used).to(losses.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        position = 0
        anywhere = flags.tolist()
        for row in everything:
            parameters = own if row is sums else self._shared
            chosen = [k for k in range(len(row)) if anywhere[position + k]]
            position += len(row)
            filled = [_or_zeros(row[k], parameters[k]) for k in chosen]
            for k, gradient in zip(chosen, filled, strict=True):
                row[k] = gradient
            for flat, members in _flattened(filled):
                dist.all_reduce(flat, group=self._group)
                flat /= self._world
                for part, gradient in zip(flat.split([g.numel() for g in members]), members, strict=True):
                    gradient.copy_(part.view_as(gradient))
        return losses / self._world


def _other_leaves(losses: Sequence[Tensor] | Tensor, shared: list[Tensor]) -> list[Tensor]:
    """Parameters in the losses' graph that are not among ``shared``."""
    known = {id(parameter) for parameter in shared}
    waiting = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(waiting)
    found: list[Tensor] = []
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            known.add(id(leaf))
            found.append(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _combine(gradients: list[Tensor | None], coefficients: list[float]) -> Tensor | None:
    result = None
    for gradient, coefficient in zip(gradients, coefficients, strict=True):
        if gradient is not None:
            result = gradient * coefficient if result is None else result.add_(gradient, alpha=coefficient)
    return result


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.clone()


def _flattened(gradients: list[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """Concatenated gradients of each dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    return [(torch.cat([gradient.reshape(-1) for gradient in members]), members) for members in kinds.values()]
