"""Clippy AdaGrad as a ``torch.optim.Optimizer``, for dense parameters of any trainer."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from dlrm_mtl.optim.clippy import Accumulator, ClippyOptions, clipping_factor, never_clips, require_learning_rate
from dlrm_mtl.optim.clippy_passes import (
    Extent,
    Scratch,
    apply_blocked,
    apply_foreach,
    measure_blocked,
    measure_foreach,
)
from dlrm_mtl.optim.clippy_shards import local_gradient, local_part, reduce_largest

_OPTIONS = tuple(field.name for field in fields(ClippyOptions))


@dataclass(frozen=True)
class Measurement:
    """What the gradients of a step would do. P: all parameters of the optimizer, group after group."""

    finite: Tensor
    """[] bool: whether all gradients are finite, and their squares, in all processes that share a parameter."""
    factors: Tensor
    """[P] sigma of each parameter; 1 for one without gradient."""
    update_norms: Tensor
    """[P] largest change of a coordinate, after clipping and without weight decay; 0 for one without gradient."""
    nonfinite: Tensor
    """[P] bool: whose gradient, or its square, is not finite."""
    gradients: dict[int, Tensor]
    """The gradients that were measured, by position in [P]: this process's part, with sparse ones coalesced."""


@dataclass(frozen=True)
class _Entry:
    """A parameter that takes part in a step."""

    position: int
    weight: Tensor
    gradient: Tensor
    accumulator: Tensor


class ClippyAdagrad(Optimizer):
    """AdaGrad in which no coordinate moves by more than ``lambda_rel |w| + lambda_abs`` in a step.

    Each parameter tensor has one factor, the largest in [0, 1] that keeps all its coordinates within that bound ("local
    clipping"). The accumulators take the unclipped gradients. Source: arXiv 2302.09178, Algorithm 1; the options that the
    paper does not have are those of TensorFlow Recommenders. The rule itself stands in ``clippy.py``.

    - A step with a gradient that is not finite, or whose square is not, changes no weight and no state, and is counted in
      ``skipped_steps``.
    - A zero gradient never changes the factor, and empty tensors are left alone.
    - Sparse (COO) gradients are clipped too, with one factor over the touched rows.
    - float16 and bfloat16 parameters: arithmetic and accumulators in float32, the result rounded to the parameter.
    - Parameters sharded as DTensors (FSDP2, tensor parallelism): one factor per whole parameter, found with one small
      all-reduce for all parameters. Plain parameters under DDP need none: their gradients are the same everywhere.
    - On a GPU and under ``torch.compile`` a step never waits for the device. On the CPU it works through the cache in blocks.

    Args:
        params: as for every optimizer of torch; with ``named_parameters()`` the reports use the names.
        lr: learning rate, a number or a tensor with one element. With the standard accumulator it must be above
            ``lambda_abs`` for anything to be clipped; otherwise a warning says so.
        lambda_rel: see :class:`~dlrm_mtl.optim.clippy.ClippyOptions`, as for all options up to
            ``clip_accumulator_update``. ``**preset("tfrs").as_dict()`` sets them all.
        lambda_abs: see there.
        initial_accumulator_value: see there.
        eps: see there.
        eps_inside: see there.
        accumulator: see there.
        accumulator_relative_threshold: see there.
        clip_accumulator_update: see there.
        weight_decay: decoupled: the weight shrinks by ``lr * weight_decay`` of itself before the update, outside the bound.
            Not for sparse gradients.
        maximize: climb instead of descending.
        foreach: True for lists of tensors, False for one tensor after the other; None chooses the first on GPUs and under
            ``torch.compile``, the second on the CPU. Results agree within rounding, and bit for bit where nothing is clipped.

    Raises:
        ValueError: an option with a wrong value or name, or a complex parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        lambda_rel: float = 0.5,
        lambda_abs: float = 1e-2,
        initial_accumulator_value: float = 0.1,
        eps: float = 0.0,
        eps_inside: bool = False,
        accumulator: Accumulator = "standard",
        accumulator_relative_threshold: float = 0.0,
        clip_accumulator_update: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambda_rel": lambda_rel,
            "lambda_abs": lambda_abs,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "eps_inside": eps_inside,
            "accumulator": accumulator,
            "accumulator_relative_threshold": accumulator_relative_threshold,
            "clip_accumulator_update": clip_accumulator_update,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)
        self._begin()

    def _begin(self) -> None:
        device = self._home()[0]
        self._scratch = Scratch()
        self._last: Measurement | None = None
        self._applied = torch.ones((), dtype=torch.bool, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._clipped = torch.zeros((), dtype=torch.int64, device=device)

    # Reports

    @property
    def skipped_steps(self) -> Tensor:
        """[] int64: steps that changed nothing, since the optimizer was made. Not part of the state dict."""
        return self._skipped

    @property
    def clipped_steps(self) -> Tensor:
        """[] int64: steps that changed weights with a factor below 1 for at least one parameter."""
        return self._clipped

    def clipping_factors(self) -> dict[str, Tensor]:
        """Each parameter's factor in the last step, [] each: 1 without clipping or gradient, 0 if the step was skipped."""
        return self._report(None if self._last is None else self._last.factors, 1.0)

    def update_norms(self) -> dict[str, Tensor]:
        """Each parameter's largest change of a coordinate in the last step, without weight decay, [] each."""
        return self._report(None if self._last is None else self._last.update_norms, 0.0)

    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters whose gradient in the last step was not finite, or its square. Waits for the device."""
        if self._last is None:
            return []
        return [name for name, bad in zip(self.names(), self._last.nonfinite.tolist(), strict=True) if bad]

    def names(self) -> list[str]:
        """The parameters' names in the order of ``Measurement``: as given, else ``group.index``."""
        return [
            name
            for number, group in enumerate(self.param_groups)
            for name in group.get("param_names", [f"{number}.{index}" for index in range(len(group["params"]))])
        ]

    def _report(self, values: Tensor | None, before: float) -> dict[str, Tensor]:
        names = self.names()
        if values is None:
            device, dtype = self._home()
            values = torch.full((len(names),), before, dtype=dtype, device=device)
        return dict(zip(names, torch.where(self._applied, values, 0.0).unbind(), strict=True))

    # The step

    @torch.no_grad()
    def measure(self) -> Measurement:
        """First half of a step: reads weights, gradients and state, changes none of them.

        Where parameters are sharded, all processes must call it together. Pass the result to :meth:`step`, without touching
        weights, gradients or learning rates in between. For training loops that decide over all processes and all
        optimizers whether a step is applied.

        Raises:
            ValueError: a sparse gradient with weight decay, or of a sharded parameter.
        """
        device, dtype = self._home()
        zero = torch.zeros((), dtype=dtype, device=device)
        nothing = Extent(zero, zero, zero)
        gradients: dict[int, Tensor] = {}
        parts: list[Tensor] = []
        for position, group in self._groups():
            extents = [nothing] * len(group["params"])
            for offset, parameter in enumerate(group["params"]):
                gradient = self._gradient(parameter, group)
                if gradient is not None:
                    gradients[position + offset] = gradient
            for entry, extent in self._measured(position, group, gradients):
                extents[entry.position - position] = Extent(*(value.to(device, dtype) for value in extent))
            lr = _scalar(group["lr"])
            rows = [torch.stack(values) for values in zip(*extents, strict=True)]
            parts.append(torch.stack([rows[0] * lr, rows[1] * lr, (~rows[2].isfinite()).to(dtype)]))
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        measured = torch.cat(parts, dim=1) if parts else zero.new_zeros(3, 0)
        ratios, changes, nonfinite = reduce_largest(measured, parameters).unbind()
        factors = clipping_factor(ratios)
        return Measurement(
            finite=~nonfinite.any(),
            factors=factors,
            update_norms=changes * factors,
            nonfinite=nonfinite != 0,
            gradients=gradients,
        )

    @overload
    def step(
        self, closure: None = None, *, measurement: Measurement | None = None, apply_if: Tensor | None = None
    ) -> None: ...

    @overload
    def step(
        self, closure: Callable[[], float], *, measurement: Measurement | None = None, apply_if: Tensor | None = None
    ) -> float: ...

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        measurement: Measurement | None = None,
        apply_if: Tensor | None = None,
    ) -> float | None:
        """Update all parameters that have a gradient, or nothing at all.

        Args:
            closure: computes the loss again and returns it.
            measurement: what :meth:`measure` returned for these gradients; None to measure now.
            apply_if: [] bool or number: where it is False or 0, the step changes no weight and no state. Whatever it is, a
                step with a gradient that is not finite changes nothing either.

        Returns:
            What ``closure`` returned.

        Raises:
            ValueError: both ``closure`` and ``measurement``; or as :meth:`measure`.
        """
        loss = None
        if closure is not None:
            if measurement is not None:
                raise ValueError(
                    "step() got closure and measurement, but the closure makes new gradients; pass one of them"
                )
            with torch.enable_grad():
                loss = closure()
        if measurement is None:
            measurement = self.measure()
        apply = measurement.finite
        if apply_if is not None:
            apply = apply & (apply_if != 0).to(apply.device, non_blocking=True)
        for position, group in self._groups():
            self._apply(position, group, measurement, apply)
        self._last = measurement
        self._applied = apply
        self._skipped += ~apply
        self._clipped += apply & (measurement.factors < 1).any()
        return loss

    def _gradient(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
        gradient = local_gradient(parameter)
        if gradient is None or gradient.layout == torch.strided:
            return gradient
        if group["weight_decay"] != 0:
            raise ValueError(
                f"a sparse gradient came with weight_decay={group['weight_decay']}, which would have to shrink untouched rows; "
                "put the parameter into a group with weight_decay=0"
            )
        return gradient.coalesce()

    def _measured(
        self, position: int, group: dict[str, Any], gradients: dict[int, Tensor]
    ) -> Iterator[tuple[_Entry, Extent]]:
        options = _options(group)
        for blocked, entries in self._batches(position, group, gradients):
            rows = [_touched(entry) for entry in entries]
            if blocked:
                lr = float(group["lr"])
                for entry, (weight, gradient, accumulator) in zip(entries, rows, strict=True):
                    yield entry, measure_blocked(weight, gradient, accumulator, lr, options, self._scratch)
            else:
                weights, taken, accumulators = (list(values) for values in zip(*rows, strict=True))
                yield from zip(entries, measure_foreach(weights, taken, accumulators, options), strict=True)

    def _apply(self, position: int, group: dict[str, Any], measurement: Measurement, apply: Tensor) -> None:
        options, lr, maximize = _options(group), _scalar(group["lr"]), bool(group["maximize"])
        decay = 1 - lr * group["weight_decay"] if group["weight_decay"] != 0 else 1.0
        all_factors = measurement.factors.unbind()
        all_scales = (measurement.factors * (lr if maximize else -lr)).unbind()
        for blocked, entries in self._batches(position, group, measurement.gradients):
            # On the CPU this number lies in the host's memory: looking at it waits for nothing.
            if blocked and not bool(apply):
                continue
            device, dtype = entries[0].weight.device, entries[0].accumulator.dtype
            factors = [all_factors[entry.position].to(device, dtype) for entry in entries]
            scales = [all_scales[entry.position].to(device, dtype) for entry in entries]
            rows = [_touched(entry) for entry in entries]
            if blocked:
                for (weight, gradient, accumulator), scale, factor in zip(rows, scales, factors, strict=True):
                    apply_blocked(weight, gradient, accumulator, scale, factor, float(decay), options, self._scratch)
            else:
                weights, gradients, accumulators = (list(values) for values in zip(*rows, strict=True))
                here = apply.to(device, non_blocking=True)
                apply_foreach(weights, gradients, accumulators, scales, factors, decay, here, maximize, options)
            for entry, (weight, _, accumulator) in zip(entries, rows, strict=True):
                _put_back(entry, weight, accumulator)
        steps: dict[torch.device, list[Tensor]] = {}
        for offset, parameter in enumerate(group["params"]):
            if position + offset in measurement.gradients:
                step = self.state[parameter]["step"]
                steps.setdefault(step.device, []).append(step)
        for device, tensors in steps.items():
            torch._foreach_add_(tensors, apply.to(device, torch.float32, non_blocking=True))

    def _batches(
        self, position: int, group: dict[str, Any], gradients: dict[int, Tensor]
    ) -> Iterator[tuple[bool, list[_Entry]]]:
        """Parameters to update, those together that one list of tensors can hold, and whether to work in blocks."""
        batches: dict[Any, list[_Entry]] = {}
        for index, parameter in enumerate(group["params"], start=position):
            gradient = gradients.get(index)
            if gradient is None or not (gradient.numel() if gradient.layout == torch.strided else gradient._nnz()):
                continue
            weight, accumulator = local_part(parameter), local_part(self.state[parameter]["sum"])
            compiling = torch.compiler.is_compiling()
            blocked = weight.device.type == "cpu" and not group["foreach"] and not compiling
            alone = index if group["foreach"] is False and not compiling else None
            key = (blocked, weight.device, weight.dtype, accumulator.dtype, alone)
            batches.setdefault(key, []).append(_Entry(index, weight, gradient, accumulator))
        for key, entries in batches.items():
            yield key[0], entries

    def _groups(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every group that holds parameters, with the position of its first."""
        position = 0
        for group in self.param_groups:
            if group["params"]:
                yield position, group
            position += len(group["params"])

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Where measurements are put together, and in which dtype."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        device = parameters[0].device if parameters else torch.device("cpu")
        double = any(parameter.dtype == torch.float64 for parameter in parameters)
        return device, torch.float64 if double else torch.float32

    # Groups and state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for every optimizer of torch; checks the group's options and creates its state.

        Raises:
            ValueError: an option with a wrong value or name, or a complex parameter.
        """
        for name in param_group.keys() - self.defaults.keys() - {"params", "param_names"}:
            meant = difflib.get_close_matches(name, self.defaults, n=1, cutoff=0.8)
            if meant:
                raise ValueError(f"{name} is no option of ClippyAdagrad; {meant[0]} was probably meant")
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex():
                raise ValueError(
                    f"a parameter is {parameter.dtype}; ClippyAdagrad updates real numbers: pass torch.view_as_real of it"
                )
            self._create_state(parameter, self.param_groups[-1])

    def _create_state(self, parameter: Tensor, group: dict[str, Any]) -> None:
        # The names and meanings are those of torch.optim.Adagrad, so that states can be exchanged.
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "sum": torch.full_like(
                parameter,
                group["initial_accumulator_value"],
                dtype=_arithmetic(parameter),
                memory_format=torch.preserve_format,
                requires_grad=False,
            ),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or of ``torch.optim.Adagrad``.

        From an Adagrad come the accumulators, the step counts and the learning rate; all other options stay as they are
        here, because Adagrad's ``weight_decay`` and ``lr_decay`` mean other things. Tensors are copied.

        Raises:
            ValueError: the numbers of groups or parameters differ.
        """
        groups = state_dict["param_groups"]
        if len(groups) == len(self.param_groups):
            groups = [_adopted(own, saved) for own, saved in zip(self.param_groups, groups, strict=True)]
        super().load_state_dict({**state_dict, "param_groups": groups})
        keys = chain.from_iterable(group["params"] for group in groups)
        for group in self.param_groups:
            for parameter in group["params"]:
                saved = state_dict["state"].get(next(keys))
                if not saved:
                    self._create_state(parameter, group)
                    continue
                step = torch.as_tensor(saved["step"], dtype=torch.float32, device=parameter.device)
                # Not what super() made of it: that has the parameter's dtype.
                accumulator = saved["sum"].detach().to(parameter.device, _arithmetic(parameter))
                self.state[parameter] = {"step": step.clone(), "sum": accumulator.clone()}

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: torch's part and the counters."""
        return {**super().__getstate__(), "_counters": (self._skipped, self._clipped)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled or loaded state; options it does not know keep their defaults."""
        counters = state.pop("_counters", None)
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if counters is not None:
            self._begin()
            self._skipped, self._clipped = counters


def _check(group: dict[str, Any]) -> None:
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr is a tensor of shape {tuple(lr.shape)}; it must have one element")
    require_learning_rate(float(lr))
    if not 0.0 <= group["weight_decay"] < float("inf"):
        raise ValueError(
            f"weight_decay is {group['weight_decay']}; it must be a number of at least 0 (0 switches it off)"
        )
    sentence = never_clips(float(lr), _options(group))
    if sentence:
        warnings.warn(sentence, stacklevel=5)


def _options(group: dict[str, Any]) -> ClippyOptions:
    return ClippyOptions(**{name: group[name] for name in _OPTIONS})


def _scalar(lr: float | Tensor) -> float | Tensor:
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def _arithmetic(parameter: Tensor) -> torch.dtype:
    return torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype


def _adopted(own: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A saved group with all options of this optimizer."""
    if "lambda_rel" in saved:
        return saved
    taken: dict[str, Any] = {
        name: saved[name] for name in ("params", "param_names", "lr", "initial_lr") if name in saved
    }
    return {**own, **taken}


def _touched(entry: _Entry) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, gradient and accumulator of a dense gradient; of a sparse one the rows it touches, copied."""
    if entry.gradient.layout == torch.strided:
        return entry.weight, entry.gradient, entry.accumulator
    where = tuple(entry.gradient.indices())
    return entry.weight[where], entry.gradient.values(), entry.accumulator[where]


def _put_back(entry: _Entry, weight: Tensor, accumulator: Tensor) -> None:
    if entry.gradient.layout != torch.strided:
        where = tuple(entry.gradient.indices())  # no row twice: the gradient is coalesced
        entry.weight[where] = weight
        entry.accumulator[where] = accumulator
