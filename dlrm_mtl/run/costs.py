"""Costs of a configuration's model, and of the same model with every other multitask architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import Part
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.tables import is_table
from dlrm_mtl.models.base import ModelInputs, RankingModelConfig
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.registry import build_ranking_model

ROWS = 2
"""Number of rows of the batch in which products are counted."""


@dataclass(frozen=True)
class Cost:
    """Cost of one model. The numbers are None if it does not fit the run, for the reason in ``problem``."""

    name: str
    """Name of the architecture in `model.multitask.name`, or of the model in `model.name`."""
    configured: bool
    """True if the configuration names it; others come from :func:`in_place_of`."""
    options: dict[str, Any]
    """Options of the count, without the name."""
    table_parameters: int | None = None
    dense_parameters: int | None = None
    """Number of all parameters outside the tables."""
    architecture_parameters: int | None = None
    """Number of parameters in the architecture: without layers of dense features, interaction, towers and logits."""
    multiply_adds: int | None = None
    """Multiply-adds of all matrix products of the whole model for one sample, forward."""
    problem: str | None = None


def count_costs(config: RunConfig, spec: DatasetSpec) -> list[Cost]:
    """Count parameters and multiply-adds of the model of ``config``, and with every other architecture instead.

    Raises:
        UserError: the configuration does not fit the data set.
    """
    selection = select(spec, config.data, [])
    spec = spec.with_rows({name: unbounded.rows for name, unbounded in config.data.unbounded.items()})
    inputs = ModelInputs(spec, selection.keys, selection.dense, config.tasks)
    costs = []
    if not hasattr(config.model, "multitask"):
        options = config.model.model_dump(mode="json", exclude={"name", "embeddings"})
        costs.append(Cost(config.model.name, True, options, *count_model(config.model, inputs)))
    for name, model in _with_each_architecture(config.model):
        configured = model is config.model
        if isinstance(model, str):
            costs.append(Cost(name, False, {}, problem=model))
            continue
        options = model.multitask.model_dump(mode="json", exclude={"name"})
        try:
            costs.append(Cost(name, configured, options, *count_model(model, inputs)))
        except UserError as error:
            if configured:
                raise
            costs.append(Cost(name, False, options, problem=str(error)))
    return costs


def in_place_of(config: Any, kind: type[BaseModel]) -> Any:
    """The architecture ``kind`` with as many options of ``config`` as possible.

    Common options keep their values. If one has `layers` and the other `levels`, every layer becomes a level, or the layers
    of all levels one stack. All other options have their defaults.

    Raises:
        ValidationError: the architecture refuses these values.
    """
    fields = kind.model_fields
    values = {name: value for name, value in config if name in fields and name != "name"}
    layers, levels = getattr(config, "layers", None), getattr(config, "levels", None)
    if "levels" in fields and layers is not None:
        values["levels"] = [[width] for width in layers]
    if "layers" in fields and levels is not None:
        values["layers"] = [width for level in levels for width in level]
    return kind(**values)


def one_line(options: dict[str, Any]) -> str:
    """Options as one line of YAML."""
    return yaml.safe_dump(options, default_flow_style=True, width=10_000, sort_keys=False).strip()[1:-1]


def _with_each_architecture(model: Any) -> Iterator[tuple[str, Any]]:
    """The model with every architecture, or the reason why there is none; `ranker` at its defaults for a model without one."""
    base = model if hasattr(model, "multitask") else ModelConfig()
    for name, kind in Part("architecture").configs().items():
        try:
            own = type(base.multitask) is kind
            made = base.multitask if own else in_place_of(base.multitask, kind)
            yield name, base if own else base.model_copy(update={"multitask": made})
        except ValidationError as error:
            detail = error.errors()[0]
            yield name, str(detail.get("ctx", {}).get("error", detail["msg"]))


def count_model(config: RankingModelConfig, inputs: ModelInputs) -> tuple[int, int, int | None, int]:
    """Number of parameters in the tables, outside them and in the architecture, and multiply-adds, of a real forward pass."""
    model = build_ranking_model(config, inputs).eval()
    # One row per table is enough: lookups are not matrix products, and a real table may not fit into memory.
    model.lookup.materialise(rows=1)
    keys = list(inputs.sparse)
    ids = KeyedJaggedTensor(
        keys=keys,
        values=torch.zeros(ROWS * len(keys), dtype=torch.int64),
        lengths=torch.ones(ROWS * len(keys), dtype=torch.int32),
    )
    labels = torch.zeros(ROWS, len(inputs.tasks))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(Batch(ids, torch.zeros(ROWS, len(inputs.dense)), labels, labels))
    outside = sum(parameter.numel() for name, parameter in model.named_parameters() if not is_table(name))
    part = getattr(model, "multitask", None)
    architecture = sum(parameter.numel() for parameter in part.parameters()) if isinstance(part, nn.Module) else None
    return model.lookup.table_set.parameters, outside, architecture, counter.get_total_flops() // (2 * ROWS)
