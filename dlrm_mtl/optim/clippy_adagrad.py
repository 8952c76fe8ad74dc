"""Clippy AdaGrad as a ``torch.optim.Optimizer``, for dense parameters of any trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from dlrm_mtl.core.clippy_defaults import INITIAL_ACCUMULATOR, LAMBDA_ABS, LAMBDA_REL
from dlrm_mtl.core.suggest import closest
from dlrm_mtl.optim import clippy_native
from dlrm_mtl.optim.clippy import Accumulator, ClippyOptions, clipping_factor, never_clips, require_learning_rate
from dlrm_mtl.optim.clippy_groups import Form, LocalParameter, ParameterBatch, put_back, touched, touched_size
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
    """Effect of a step's gradients, before the step. P: all parameters of the optimizer, group after group."""

    finite: Tensor
    """[] bool: True if all gradients and their squares are finite, in all processes that share a parameter."""
    factors: Tensor
    """[P] sigma of each parameter; 1 for a parameter without gradient."""
    update_norms: Tensor
    """[P] largest change of a coordinate, after clipping and without weight decay; 0 for a parameter without gradient."""
    nonfinite: Tensor
    """[P] bool: True for a parameter whose gradient, or its square, is not finite."""
    _batches: list[ParameterBatch]
    _with_gradient: list[Tensor]


class ClippyAdagrad(Optimizer):
    """AdaGrad in which no coordinate moves by more than ``lambda_rel |w| + lambda_abs`` in a step.

    Each parameter tensor has one factor, the largest in [0, 1] that keeps all its coordinates within that bound ("local
    clipping"). The accumulators take the unclipped gradients. Source: arXiv 2302.09178, Algorithm 1; options that are not
    in the paper are those of TensorFlow Recommenders. The rule itself is in ``clippy.py``.

    - A step with a gradient that is not finite, or whose square is not, changes no weight and no state, and is counted in
      ``skipped_steps``.
    - A zero gradient never changes the factor, and empty tensors are skipped.
    - Sparse (COO) gradients are clipped too, with one factor over the touched rows.
    - float16 and bfloat16 parameters: arithmetic and accumulators in float32, the result rounded to the parameter.
    - Parameters sharded as DTensors (FSDP2, tensor parallelism): one factor per whole parameter, found with one small
      all-reduce for all parameters. Plain parameters under DDP need none: their gradients are the same everywhere.
    - On a GPU and under ``torch.compile`` a step never waits for the device. On the CPU the native library updates all
      float32 parameters in one call; without it, and for other dtypes, tensors are processed in blocks that fit the cache.

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
        weight_decay: decoupled weight decay: the weight is multiplied by ``1 - lr * weight_decay`` before the update,
            outside the bound. Not for sparse gradients.
        maximize: True to ascend instead of descending.
        foreach: True for lists of tensors, False for single tensors; None chooses lists on GPUs and under
            ``torch.compile``, single tensors on the CPU. Results agree within rounding, and bit for bit if nothing is
            clipped.

    Raises:
        ValueError: an option with a wrong value or name, or a complex parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        lambda_rel: float = LAMBDA_REL,
        lambda_abs: float = LAMBDA_ABS,
        initial_accumulator_value: float = INITIAL_ACCUMULATOR,
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
        # State of the reports. Written in place, as CUDA graphs and torch.compile require.
        device, dtype = self._home()
        count = sum(len(group["params"]) for group in self.param_groups)
        self._factors = torch.ones(count, dtype=dtype, device=device)
        self._update_norms = torch.zeros(count, dtype=dtype, device=device)
        self._nonfinite = torch.zeros(count, dtype=torch.bool, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._clipped = torch.zeros((), dtype=torch.int64, device=device)
        self._scratch = Scratch()

    # Reports

    @property
    def skipped_steps(self) -> Tensor:
        """[] int64: number of steps that changed nothing, since construction. Not part of the state dict."""
        return self._skipped

    @property
    def clipped_steps(self) -> Tensor:
        """[] int64: number of steps that changed weights with a factor below 1 for at least one parameter."""
        return self._clipped

    def clipping_factors(self) -> dict[str, Tensor]:
        """Factor of each parameter in the last step, [] each: 1 without clipping or gradient, 0 if the step was skipped."""
        return dict(zip(self.names(), self._factors.clone().unbind(), strict=True))

    def update_norms(self) -> dict[str, Tensor]:
        """Largest change of a coordinate of each parameter in the last step, without weight decay, [] each."""
        return dict(zip(self.names(), self._update_norms.clone().unbind(), strict=True))

    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters whose gradient or its square was not finite in the last step. Waits for the device."""
        return [name for name, bad in zip(self.names(), self._nonfinite.tolist(), strict=True) if bad]

    def names(self) -> list[str]:
        """Names of the parameters in the order of ``Measurement``: the given ones, or ``group.index``."""
        return [
            name
            for number, group in enumerate(self.param_groups)
            for name in group.get("param_names", [f"{number}.{index}" for index in range(len(group["params"]))])
        ]

    # The step

    @torch.no_grad()
    def measure(self) -> Measurement:
        """Measure a step: read weights, gradients and state without changing them.

        For training loops that decide over all processes and optimizers whether a step is applied. If parameters are
        sharded, all processes must call this together. Pass the result to :meth:`step`, without changing weights, gradients
        or learning rates in between.

        Raises:
            ValueError: a sparse gradient with weight decay.
        """
        device, dtype = self._home()
        zero = torch.zeros((), dtype=dtype, device=device)
        batches, with_gradient = self._collect()
        count = sum(len(group["params"]) for group in self.param_groups)
        extents: dict[int, Extent] = {}
        for batch in batches:
            if batch.form != "native":
                extents.update(zip(batch.positions, self._measured(batch), strict=True))
        rows = list(zero.new_zeros(3, count))
        if extents:
            whole = [extents.get(position, Extent(zero, zero, zero)) for position in range(count)]
            rows = [torch.stack([value.to(device, dtype) for value in values]) for values in zip(*whole, strict=True)]
        for batch in batches:
            if batch.form == "native":
                for row, found in zip(rows, self._measured_natively(batch), strict=True):
                    row[batch.positions] = found.to(device, dtype)
        ratio, change, accumulator = rows
        sizes = [len(group["params"]) for group in self.param_groups]
        rates = [_scalar(group["lr"]) for group in self.param_groups]
        ratio, change = (
            torch.cat([part * lr for part, lr in zip(values.split(sizes), rates, strict=True)])
            for values in (ratio, change)
        )
        measured = torch.stack([ratio, change, (~accumulator.isfinite()).to(dtype)])
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        ratio, change, nonfinite = reduce_largest(measured, parameters).unbind()
        factors = clipping_factor(ratio)
        return Measurement(
            finite=~nonfinite.any(),
            factors=factors,
            update_norms=change * factors,
            nonfinite=nonfinite != 0,
            _batches=batches,
            _with_gradient=with_gradient,
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
            closure: recomputes the loss and returns it.
            measurement: result of :meth:`measure` for these gradients; None to measure now.
            apply_if: [] bool or number: if False or 0, the step changes no weight and no state. A step with a gradient that
                is not finite never changes anything.

        Returns:
            The result of ``closure``.

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
        self._apply(measurement, apply)
        self._factors.copy_(torch.where(apply, measurement.factors, 0.0))
        self._update_norms.copy_(torch.where(apply, measurement.update_norms, 0.0))
        self._nonfinite.copy_(measurement.nonfinite)
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

    def _collect(self) -> tuple[list[ParameterBatch], list[Tensor]]:
        """Batches of parameters to update, and all parameters with a gradient."""
        batches: list[ParameterBatch] = []
        with_gradient: list[Tensor] = []
        compiling = torch.compiler.is_compiling()
        native = not compiling and clippy_native.available()
        position = -1
        for number, group in enumerate(self.param_groups):
            alike: dict[Any, list[LocalParameter]] = {}
            for parameter in group["params"]:
                position += 1
                gradient = self._gradient(parameter, group)
                if gradient is None:
                    continue
                with_gradient.append(parameter)
                if not touched_size(gradient):
                    continue
                weight, accumulator = local_part(parameter), local_part(self.state[parameter]["sum"])
                form: Form = "foreach"
                if weight.device.type == "cpu" and not group["foreach"] and not compiling:
                    form = "native" if native and clippy_native.fits(weight, gradient, accumulator) else "blocked"
                single = form == "blocked" or (group["foreach"] is False and form == "foreach" and not compiling)
                key = (form, weight.device, weight.dtype, accumulator.dtype, position if single else None)
                alike.setdefault(key, []).append(LocalParameter(position, weight, gradient, accumulator))
            batches += [ParameterBatch(number, form, entries) for (form, *_), entries in alike.items()]
        return batches, with_gradient

    def _measured_natively(self, batch: ParameterBatch) -> Tensor:
        group = self.param_groups[batch.group]
        return clippy_native.measure(*touched(batch.entries), float(group["lr"]), _options(group))

    def _measured(self, batch: ParameterBatch) -> list[Extent]:
        group = self.param_groups[batch.group]
        options = _options(group)
        weights, gradients, accumulators = touched(batch.entries)
        if batch.form == "foreach":
            return measure_foreach(weights, gradients, accumulators, options)
        return [measure_blocked(weights[0], gradients[0], accumulators[0], float(group["lr"]), options, self._scratch)]

    def _apply(self, measurement: Measurement, apply: Tensor) -> None:
        for batch in measurement._batches:
            # On the CPU this number is in host memory, so reading it does not wait.
            if batch.on_cpu and not bool(apply):
                continue
            group = self.param_groups[batch.group]
            options, lr, maximize = _options(group), _scalar(group["lr"]), bool(group["maximize"])
            decay = 1 - lr * group["weight_decay"] if group["weight_decay"] != 0 else 1.0
            device, dtype = batch.entries[0].weight.device, batch.entries[0].accumulator.dtype
            if batch.on_cpu:
                factors = measurement.factors[batch.positions].to(device)
            else:  # an index on the host would make a device wait
                factor = measurement.factors.unbind()
                factors = torch.stack([factor[entry.position] for entry in batch.entries]).to(device)
            scales = (factors * (lr if maximize else -lr)).to(dtype)
            factors = factors.to(dtype)
            weights, gradients, accumulators = touched(batch.entries)
            if batch.form == "foreach":
                apply_foreach(
                    weights,
                    gradients,
                    accumulators,
                    list(scales.unbind()),
                    list(factors.unbind()),
                    decay,
                    apply.to(device, non_blocking=True),
                    maximize,
                    options,
                )
            elif batch.form == "native":
                clippy_native.apply(weights, gradients, accumulators, scales, factors, float(decay), options)
            else:
                apply_blocked(
                    weights[0],
                    gradients[0],
                    accumulators[0],
                    scales[0],
                    factors[0],
                    float(decay),
                    options,
                    self._scratch,
                )
            put_back(batch.entries, weights, accumulators)
        steps: dict[torch.device, list[Tensor]] = {}
        for parameter in measurement._with_gradient:
            step = self.state[parameter]["step"]
            steps.setdefault(step.device, []).append(step)
        for device, tensors in steps.items():
            torch._foreach_add_(tensors, [apply.to(device, torch.float32, non_blocking=True)] * len(tensors))

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of measurements."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        device = parameters[0].device if parameters else torch.device("cpu")
        double = any(parameter.dtype == torch.float64 for parameter in parameters)
        return device, torch.float64 if double else torch.float32

    # Groups and state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in every optimizer of torch; checks its options and creates its state.

        Raises:
            ValueError: an option with a wrong value or name, or a complex parameter.
        """
        for name in param_group.keys() - self.defaults.keys() - {"params", "param_names"}:
            meant = closest(name, list(self.defaults), cutoff=0.8)
            if meant:
                raise ValueError(f"{name} is no option of ClippyAdagrad; {meant} was probably meant")
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex():
                raise ValueError(
                    f"a parameter is {parameter.dtype}; ClippyAdagrad updates real numbers: pass torch.view_as_real of it"
                )
            self._create_state(parameter, self.param_groups[-1])
        if hasattr(self, "_skipped"):
            counters = self._skipped, self._clipped
            self._begin()
            self._skipped, self._clipped = counters

    def _create_state(self, parameter: Tensor, group: dict[str, Any]) -> None:
        # Names and meanings are those of torch.optim.Adagrad, so that states can be exchanged.
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

        An Adagrad's accumulators, step counts and learning rate are taken over; all other options are kept, because
        Adagrad's ``weight_decay`` and ``lr_decay`` have other meanings. Tensors are copied.

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
                # Not the result of super(), which has the parameter's dtype.
                accumulator = saved["sum"].detach().to(parameter.device, _arithmetic(parameter))
                self.state[parameter] = {"step": step.clone(), "sum": accumulator.clone()}

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and copying: torch's part and the counters."""
        return {**super().__getstate__(), "_counters": (self._skipped, self._clipped)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state; missing options get their defaults."""
        state = dict(state)
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
    """A saved group, completed by the options of this optimizer."""
    if "lambda_rel" in saved:
        return saved
    taken: dict[str, Any] = {
        name: saved[name] for name in ("params", "param_names", "lr", "initial_lr") if name in saved
    }
    return {**own, **taken}
