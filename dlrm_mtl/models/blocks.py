"""Stacks of linear layers and gates, the building blocks of architectures.

Shapes: B rows, N stacks of equal shape computed together, D input width, d output width, G gates, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.parts import Misfit, RunConfigLike
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.models.dropout import LaneDropout
from dlrm_mtl.tasks.products import own_tasks

ActivationName = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "prelu", "dice"]
Norm = Literal["none", "layer", "batch"]


class Block(nn.Module):
    """A module that states the width of its output."""

    out_features: int
    """Size of the output's last dimension."""

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Term that the module adds to the loss of every row, [B], given logits [B, T]; None for no term."""
        return None


class LayerConfig(Strict):
    """Norm, activation and dropout after every linear layer of a stack."""

    activation: ActivationName = "relu"
    """Activation after every layer. `prelu` and `dice` learn one slope per channel; `dice` depends on the batch, like batch
    norm."""
    norm: Norm = "none"
    """`layer`: layer normalisation before the activation. It sees one row at a time, so it does not depend on the batch.

    `batch`: batch normalisation. In training it uses the rows of one process: the model then depends on the number of
    processes, and on the padding of the last batch.
    """
    dropout: float = 0.0
    """Fraction of every layer's outputs that is dropped in training, in [0, 1)."""

    def model_post_init(self, _: object) -> None:
        """Refuse a dropout rate outside its range."""
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1); use 0 for none.")


class StackConfig(LayerConfig):
    """A stack of linear layers: each followed by norm, activation and dropout."""

    layers: list[int]
    """Widths of the layers; an empty list is the identity."""

    @field_validator("layers")
    @classmethod
    def _positive_widths(cls, layers: list[int]) -> list[int]:
        if any(width <= 0 for width in layers):
            raise ValueError(f"layers {layers} holds a width that is not positive; widths are positive integers.")
        return layers


class LevelsConfig(LayerConfig):
    """Experts on several levels; each level reads the output of the one before it."""

    levels: list[list[int]]
    """Widths of the experts' layers, for every level: `[[256], [128]]` means two levels of experts with one layer each."""

    @field_validator("levels")
    @classmethod
    def _positive_widths(cls, levels: list[list[int]]) -> list[list[int]]:
        if not levels or any(not layers for layers in levels):
            raise ValueError(f"levels {levels} has no level or one without layers; give each level its list of widths.")
        if any(width <= 0 for layers in levels for width in layers):
            raise ValueError(f"levels {levels} holds a width that is not positive; widths are positive integers.")
        return levels

    def stacks(self) -> list[StackConfig]:
        """Experts of every level, one configuration each."""
        return [
            StackConfig(layers=layers, activation=self.activation, norm=self.norm, dropout=self.dropout)
            for layers in self.levels
        ]


def _counts(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in values):
        raise ValueError(f"{value!r} does not fit: give a positive integer, or a list of them with one for each task.")
    return value


ExpertCounts = Annotated[int | list[int], BeforeValidator(_counts)]
"""A number of experts: one number for all tasks, or a list with one number per task."""


def counts_per_task(counts: int | list[int], tasks: int) -> list[int]:
    """Number of experts of each of ``tasks`` tasks, as a new list.

    Raises:
        ValueError: the list has another length.
    """
    if isinstance(counts, int):
        return [counts] * tasks
    if len(counts) != tasks:
        raise ValueError(
            f"task_experts {counts} has {len(counts)} entries and there are {tasks} tasks; give one number, or one per task."
        )
    return list(counts)


def check_task_experts(counts: int | list[int], run: RunConfigLike) -> None:
    """Refuse ``task_experts`` that do not fit the tasks with their own logit; raises :class:`Misfit`."""
    try:
        counts_per_task(counts, len(own_tasks(run.tasks)))
    except ValueError as error:
        raise Misfit(str(error), "task_experts") from None


class ParallelLinear(nn.Module):
    """N linear layers of equal shape as one batched matrix product.

    ``weight`` is [N, d, D] and ``bias`` [N, d]: layer n's parameters are the n-th slices. Initialised as N ``nn.Linear``.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, N, D], or [B, D] read by all N layers, to [B, N, d]."""
        return _parallel_linear(x, self.weight, self.bias)


def _parallel_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    count, out_features, in_features = weight.shape
    if x.dim() == 2:
        flat = F.linear(x, weight.reshape(count * out_features, in_features), bias.reshape(-1))
        return flat.view(x.shape[0], count, out_features)
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


class ParallelLayerNorm(nn.Module):
    """N layer normalisations of width d, over the last dimension of [B, N, d]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, width))
        self.bias = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, N, d]."""
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class _BatchStandardise(nn.Module):
    """Standardisation of every channel of [B, ...]: batch normalisation without weights.

    Training uses the statistics of the current rows, evaluation running averages (momentum 0.1, unbiased variance, as in
    ``nn.BatchNorm1d``). Fewer than two rows have no variance: they are standardised with the running averages, and do not
    change them.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, *shape: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        live = self.training and x.shape[0] > 1
        flat = torch.batch_norm(
            x.flatten(1), None, None, self.mean.view(-1), self.variance.view(-1), live, 0.1, self.eps, False
        )
        return flat.view(x.shape)


class ParallelBatchNorm(nn.Module):
    """N batch normalisations of width d (Ioffe & Szegedy, 2015), each channel of [B, N, d] over the rows.

    The statistics are those of the rows that one process holds, and padding rows count. So the trained model depends on the
    number of processes, unlike with any other block of this package; prefer ``layer`` norm.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.standardise = _BatchStandardise(count, width, eps=1e-5)
        self.weight = nn.Parameter(torch.ones(count, width))
        self.bias = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, N, d]."""
        out: Tensor = self.standardise(x) * self.weight + self.bias
        return out


class ParallelPReLU(nn.Module):
    """max(0, x) + a min(0, x) with one learned slope a per channel, initially 0.25 (He et al., ICCV 2015, equation 1)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((count, width), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` [B, N, d]."""
        return torch.where(x > 0, x, self.slope * x)


class ParallelDice(nn.Module):
    """DICE: p x + (1 - p) a x, p = sigmoid((x - mean) / sqrt(var + 1e-8)) (Zhou et al., KDD 2018, equation 9).

    Mean and variance are those of each channel over the rows, and running averages in evaluation. The slope a is learned
    per channel and initially 0. Like batch normalisation, DICE depends on the batch, and so on the number of processes.
    (Some libraries standardise each row over its channels instead, which is another function.)
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.standardise = _BatchStandardise(count, width, eps=1e-8)
        self.slope = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` [B, N, d]."""
        gate = torch.sigmoid(self.standardise(x))
        return x * (gate + (1.0 - gate) * self.slope)


ACTIVATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    # name -> module for [B, N, d], made from N and d
    "relu": lambda count, width: nn.ReLU(),
    "gelu": lambda count, width: nn.GELU(),
    "silu": lambda count, width: nn.SiLU(),
    "tanh": lambda count, width: nn.Tanh(),
    "sigmoid": lambda count, width: nn.Sigmoid(),
    "leaky_relu": lambda count, width: nn.LeakyReLU(),
    "prelu": ParallelPReLU,
    "dice": ParallelDice,
}
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "layer": ParallelLayerNorm,
    "batch": ParallelBatchNorm,
}


class ParallelMLP(Block):
    """N stacks of linear layers of equal shape, computed together: [B, D] or [B, N, D] -> [B, N, d]."""

    def __init__(self, count: int, in_features: int, config: StackConfig) -> None:
        super().__init__()
        self.count = count
        self.out_features = config.layers[-1] if config.layers else in_features
        self.layers = nn.Sequential()
        for width in config.layers:
            self.layers.append(ParallelLinear(count, in_features, width))
            if config.norm != "none":
                self.layers.append(NORMS[config.norm](count, width))
            self.layers.append(ACTIVATIONS[config.activation](count, width))
            self.layers.append(LaneDropout(config.dropout))
            in_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, D], read by all N stacks, or [B, N, D] to [B, N, d]."""
        if len(self.layers) == 0 and x.dim() == 2:
            return x.unsqueeze(1).expand(-1, self.count, -1)
        out: Tensor = self.layers(x)
        return out


class MLP(Block):
    """One stack of linear layers: [B, D] -> [B, d]."""

    def __init__(self, in_features: int, config: StackConfig) -> None:
        super().__init__()
        self.stack = ParallelMLP(1, in_features, config)
        self.out_features = self.stack.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, D] to [B, d]."""
        out: Tensor = self.stack(x).squeeze(1)
        return out


class Gates(nn.Module):
    """G softmax gates, each over its experts, as one batched product: [B, D] or [B, G, D] -> [B, G, E].

    A gate's weight for an expert that it does not see is exactly 0, and it has no parameters for it: ``weight`` [n, D] and
    ``bias`` [n] hold one row for every pair of a gate and an expert that it sees, gate by gate.

    Args:
        in_features: width D of the gates' input.
        sees: numbers of the experts that each gate sees, ascending.
        experts: number of experts E.
    """

    places: Tensor | None

    def __init__(self, in_features: int, sees: Sequence[Sequence[int]], experts: int) -> None:
        super().__init__()
        self.gates, self.experts = len(sees), experts
        places = [gate * experts + expert for gate, seen in enumerate(sees) for expert in seen]
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(len(places), in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(places)).uniform_(-bound, bound))
        partial = len(places) < self.gates * experts
        self.register_buffer("places", torch.tensor(places) if partial else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights [B, G, E] from ``x`` [B, D], read by all gates, or [B, G, D]."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.places is not None:  # pairs without a connection: logit -inf
            cells = self.gates * self.experts
            weight = weight.new_zeros(cells, weight.shape[1]).index_copy(0, self.places, weight)
            bias = bias.new_full((cells,), -math.inf).index_copy(0, self.places, bias)
        weight = weight.view(self.gates, self.experts, -1)
        return torch.softmax(_parallel_linear(x, weight, bias.view(self.gates, self.experts)), dim=-1)


def for_experts(slots: Tensor, counts: Sequence[int]) -> Tensor:
    """Input of each expert: slot u of ``slots`` [B, U, D] for the counts[u] experts of unit u, so [B, sum(counts), D].

    Experts are numbered unit by unit. ``slots`` [B, D] is the input of all experts, and is returned unchanged.
    """
    if slots.dim() == 2 or all(count == 1 for count in counts):
        return slots
    rows, units, width = slots.shape
    if len(set(counts)) == 1:
        return slots.unsqueeze(2).expand(-1, -1, counts[0], -1).reshape(rows, units * counts[0], width)
    return torch.cat([slots[:, u : u + 1].expand(-1, count, -1) for u, count in enumerate(counts) if count], dim=1)
