"""`dlrm-mtl models` counts what is really built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.multitask.aitm import AITMConfig
from dlrm_mtl.models.multitask.mmoe import MMoEConfig
from dlrm_mtl.models.multitask.ple import PLEConfig
from dlrm_mtl.run.costs import count_costs, in_place_of
from tests import commands

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def stack(width: int, layers: list[int]) -> int:
    """Parameters of a stack of linear layers."""
    widths = [width, *layers]
    return sum(out * (before + 1) for before, out in zip(widths, layers, strict=False))


def products(width: int, layers: list[int]) -> int:
    """Multiply-adds of a stack of linear layers."""
    widths = [width, *layers]
    return sum(out * before for before, out in zip(widths, layers, strict=False))


def test_counts_follow_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIGS / "kuairand_mmoe_debug.yaml", ["model.dense.layers=[3]", "model.multitask.norm=layer"])
    spec = open_dataset(config.data.path).spec
    costs = {cost.name: cost for cost in count_costs(config, spec)}
    assert list(costs) == list(registry("architecture").described())
    assert [name for name, cost in costs.items() if cost.configured] == ["mmoe"]
    dim, tasks, dense, expert, tower = 4, 2, 2, 8, 4  # as in the file
    width = dim * 5 + 3  # four sparse features, one sequence, and what comes out of model.dense
    around = stack(dense, [3]) + tasks * stack(expert, [tower, 1])
    around_products = products(dense, [3]) + tasks * products(expert, [tower, 1])
    norm = 2 * expert
    experts = 2 * (stack(width, [expert]) + norm)
    gates = tasks * (width + 1) * 2
    assert costs["mmoe"].architecture_parameters == experts + gates
    assert costs["mmoe"].dense_parameters == around + experts + gates
    mixing = tasks * 2 * (width + expert)
    assert costs["mmoe"].multiply_adds == around_products + 2 * products(width, [expert]) + mixing
    assert costs["shared_bottom"].architecture_parameters == stack(width, [expert]) + norm
    assert costs["shared_bottom"].multiply_adds == around_products + products(width, [expert])
    rows = sum(spec.vocabulary_size(name) for name in ("user_id", "video_id", "tag", "tab"))  # the sequence shares
    assert {cost.table_parameters for cost in costs.values()} == {dim * rows}


def test_options_are_carried_over() -> None:
    mmoe = MMoEConfig(experts=7, layers=[32, 16], activation="gelu")
    ple = in_place_of(mmoe, PLEConfig)
    assert ple == PLEConfig(levels=[[32], [16]], activation="gelu")
    assert in_place_of(PLEConfig(task_experts=3, levels=[[32, 8], [16]], dropout=0.1), MMoEConfig) == MMoEConfig(
        layers=[32, 8, 16], dropout=0.1
    )
    for kind in Part("architecture").configs().values():
        assert in_place_of(in_place_of(mmoe, kind), AITMConfig).layers == [32, 16]


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIGS / "kuairand_shared_bottom_debug.yaml", ["model.multitask.layers=[]"])
    costs = {cost.name: cost for cost in count_costs(config, open_dataset(config.data.path).spec)}
    assert costs["shared_bottom"].problem is None
    assert costs["ple"].multiply_adds is None
    assert "levels []" in str(costs["ple"].problem)


def test_models_without_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = set()
    for file in sorted(CONFIGS.glob("kuairand_*_debug.yaml")):
        config = load_config(file)
        if not isinstance(config.model, ModelConfig):
            first, *others = count_costs(config, open_dataset(config.data.path).spec)
            assert first.configured
            assert first.name == config.model.name
            assert first.multiply_adds is not None
            assert not any(cost.configured for cost in others)
            seen.add(first.name)
    assert len(seen) == len(registry("model").names()) - 1


@pytest.mark.slow
def test_command() -> None:
    listed = commands.run("models", cwd=ROOT)
    assert listed.returncode == 0, listed.stderr
    for name, text in registry("architecture").described().items():
        assert any(line.split() == [name, *text.split()] for line in listed.stdout.splitlines())
    assert "neumf" in listed.stdout
    costs = commands.run("models", "configs/kuairand_ple_debug.yaml", "--json", cwd=ROOT)
    assert costs.returncode == 0, costs.stderr
    names = {cost["name"]: cost["configured"] for cost in json.loads(costs.stdout)["models"]}
    assert [name for name, configured in names.items() if configured] == ["ple"]
    shown = commands.run("models", "configs/kuairand_ple_debug.yaml", cwd=ROOT)
    assert "* ple" in shown.stdout
    assert not shown.stderr
    wrong = commands.run("models", "--set", "seed=2", cwd=ROOT)
    assert wrong.returncode == 2
    assert "there is no configuration to override" in wrong.stderr
