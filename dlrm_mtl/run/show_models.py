"""Output of `dlrm-mtl models`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from dlrm_mtl.console import say
from dlrm_mtl.models.blocks import LayerConfig


def list_models(as_json: bool) -> None:
    """Print every architecture, and every model without one, with one line of description."""
    import dlrm_mtl.models  # noqa: F401  (says where models are)
    from dlrm_mtl.core.registry import registry

    architectures = registry("architecture").described()
    models = {
        entry.name: entry.summary
        for entry in registry("model")
        if entry.config is not None and "multitask" not in entry.config.model_fields
    }
    parts = {"architectures": architectures, "models": models}
    if as_json:
        listed = {part: [{"name": n, "description": text} for n, text in of.items()] for part, of in parts.items()}
        say(json.dumps(listed, indent=2))
        return
    width = max(map(len, [*architectures, *models]))
    say("Multitask architectures (model.multitask.name):")
    for name, text in architectures.items():
        say(f"  {name:{width}}  {text}")
    say("\nModels without one (model.name):")
    for name, text in models.items():
        say(f"  {name:{width}}  {text}")


def show_costs(path: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Print the cost of each architecture under a configuration; raises UserError if it does not fit its data set."""
    from dlrm_mtl.config.load import load_config
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.run.costs import count_costs, one_line

    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # remarks that users cannot act on
    config = load_config(path, overrides)
    costs = count_costs(config, open_dataset(config.data.path).spec)
    if as_json:
        described = {"run": config.name, "tasks": len(config.tasks), "models": [asdict(cost) for cost in costs]}
        say(json.dumps(described, indent=2))
        return
    defaults = LayerConfig().model_dump()
    lines = [("", "in tables", "outside", "architecture", "multiply-adds", "options")]
    for cost in costs:
        counts = (cost.table_parameters, cost.dense_parameters, cost.architecture_parameters, cost.multiply_adds)
        options = {name: value for name, value in cost.options.items() if (name, value) not in defaults.items()}
        shown = ["-" if count is None else f"{count:,}" for count in counts]
        name = f"* {cost.name}" if cost.configured else f"  {cost.name}"
        lines.append((name, shown[0], shown[1], shown[2], shown[3], cost.problem or one_line(options)))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    say(
        f"{config.name}: {len(config.tasks)} tasks; parameters, and multiply-adds of all matrix products for one sample, "
        "forward"
    )
    for name, *counts_shown, options_shown in lines:
        numbers = "  ".join(f"{text:>{width}}" for text, width in zip(counts_shown, widths[1:], strict=True))
        say(f"{name:{widths[0]}}  {numbers}  {options_shown}")
    if hasattr(config.model, "multitask"):
        others = (
            "share with it the options that they have in common; where one has layers and the other levels, a layer stands "
            "for a level; all else is at its default."
        )
    else:
        others = "are those of the model `ranker`, with all parts at their defaults."
    say(f"* {config.model.title} is as configured. The other architectures {others}")
