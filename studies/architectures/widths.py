"""Widths with which all architectures have equally many parameters, and the sweeps that use them.

python -m studies.architectures.widths      # writes the sweeps' files
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.schema import validate
from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.models.base import ModelInputs
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.multitask import build_multitask
from dlrm_mtl.models.registry import build_ranking_model

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

FORMS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    # options from the width of the first layer and that of the representation; two layers, or two levels of one
    "shared_bottom": lambda width, out: {"name": "shared_bottom", "layers": [width, out]},
    "single_task": lambda width, out: {"name": "single_task", "layers": [width, out]},
    "omoe": lambda width, out: {"name": "omoe", "experts": 4, "layers": [width, out]},
    "mmoe": lambda width, out: {"name": "mmoe", "experts": 4, "layers": [width, out]},
    "multi_level_mmoe": lambda width, out: {"name": "multi_level_mmoe", "experts": 4, "levels": [[width], [out]]},
    "cgc": lambda width, out: {"name": "ple", "task_experts": 1, "shared_experts": 2, "levels": [[width, out]]},
    "ple": lambda width, out: {"name": "ple", "task_experts": 1, "shared_experts": 2, "levels": [[width], [out]]},
    "cross_stitch": lambda width, out: {"name": "cross_stitch", "levels": [[width], [out]]},
    "adatt_sp": lambda width, out: {"name": "adatt_sp", "task_experts": 2, "levels": [[width], [out]]},
    "adatt": lambda width, out: {"name": "adatt", "task_experts": 1, "shared_experts": 2, "levels": [[width], [out]]},
    "aitm": lambda width, out: {"name": "aitm", "calibrator": 0, "layers": [width, out]},
}
"""Architectures by the name of a method: each model of `model.multitask.name`, and CGC, which is PLE with one level."""
RATES = (0.001, 0.003, 0.01)


@dataclass(frozen=True)
class Setting:
    """A data set, and the size of the architectures on it."""

    config: str
    """Configuration, from the repository's root."""
    budget: int
    """Parameters of the architecture, without tables, interaction, towers and logits."""
    out: int
    """Width of a task's representation."""
    options: Mapping[str, Any]
    """Options of all architectures."""
    set: Mapping[str, Any]
    """Values by key path of all trainings."""
    about: str


SETTINGS = {
    "kuairand": Setting(
        "configs/base/kuairand.yaml",
        100_000,
        32,
        {"norm": "layer", "dropout": 0.1},
        {"training": {"epochs": 2, "evaluate_every": 180, "early_stopping": {"metric": "mean/auc", "patience": 2}}},
        "Four tasks on KuaiRand-Pure.",
    ),
    "correlation_0": Setting(
        "configs/studies/related_tasks.yaml", 12_000, 16, {"norm": "layer"}, {}, "Two tasks without correlation."
    ),
    "correlation_09": Setting(
        "configs/studies/related_tasks.yaml", 12_000, 16, {"norm": "layer"}, {}, "Two tasks with a correlation of 0.9."
    ),
}


def synthetic() -> DatasetSpec:
    """The features of the synthetic data, as far as widths depend on them."""
    features = [FeatureSpec(name=f"table_{n}", kind="sparse", vocabulary_size=100) for n in range(6)]
    features += [FeatureSpec(name=f"dense_{n}", kind="dense") for n in range(4)]
    return DatasetSpec(
        name="synthetic",
        splits={"train": SplitSpec(folder="train")},
        features=features,
        labels=[LabelSpec(name=f"task_{n}") for n in range(2)],
    )


@cache
def inputs_and_tasks(name: str) -> tuple[int, int]:
    """Width of the input of the architecture, and number of tasks."""
    config = load_config(str(ROOT / SETTINGS[name].config), ["name=widths"])
    spec = open_dataset(str(ROOT / config.data.path)).spec if name == "kuairand" else synthetic()
    selection = select(spec, config.data, [])
    model = build_ranking_model(config.model, ModelInputs(spec, selection.keys, selection.dense, config.tasks))
    return int(model.interaction.out_features), len(config.tasks)  # type: ignore[arg-type]


def parameters(name: str, options: Mapping[str, Any]) -> int:
    """Parameters of an architecture on a data set."""
    inputs, tasks = inputs_and_tasks(name)
    config = validate(ModelConfig, {"multitask": {**options, **SETTINGS[name].options}}, "options").multitask
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_multitask(config, inputs, tasks).parameters())


def widest(name: str, method: str) -> tuple[dict[str, Any], int]:
    """Options of a method whose number of parameters is nearest to the budget, and that number."""
    setting, form = SETTINGS[name], FORMS[method]
    low, high = 1, setting.budget
    while high - low > 1:  # the number rises with the width
        middle = (low + high) // 2
        if parameters(name, form(middle, setting.out)) <= setting.budget:
            low = middle
        else:
            high = middle
    counts = {width: parameters(name, form(width, setting.out)) for width in (low, low + 1)}
    width = min(counts, key=lambda each: abs(counts[each] - setting.budget))
    return {**form(width, setting.out), **setting.options}, counts[width]


def sweep(name: str) -> str:
    """The text of a sweep's file."""
    setting = SETTINGS[name]
    lines = [
        f"# {setting.about} All architectures with about {setting.budget:,} parameters.",
        "# Written by `python -m studies.architectures.widths`.",
        f"config: ../../{setting.config}",
    ]
    if setting.set:
        lines.append(f"set: {to_yaml(dict(setting.set))}")
    lines.append("methods:")
    for method in FORMS:
        options, count = widest(name, method)
        lines.append(f"  {method}: {{set: {{model.multitask: {to_yaml(options)}}}}}    # {count:,}")
    lines += ["parameters:", "  optimizer:"]
    for rate in RATES:
        rule = f"learning_rate: {rate:g}"
        lines.append(f"  - {{sparse: {{name: rowwise_adam, {rule}}}, dense: {{name: adam, {rule}}}}}")
    lines += ["seeds: 1", "final_seeds: 5", "baseline: shared_bottom", "equal_effort: true"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for setting_name in SETTINGS:
        (FOLDER / f"{setting_name}.yaml").write_text(sweep(setting_name), encoding="utf-8")
