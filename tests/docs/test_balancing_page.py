"""docs/balancing.md names every method, and its figures and its example are true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch
import yaml
from pydantic import TypeAdapter

from dlrm_mtl.balancing import BalancingConfig, build_balancing
from dlrm_mtl.core.registry import registry


def page(repository: Path) -> str:
    return (repository / "docs" / "balancing.md").read_text()


def test_every_method_and_option_is_in_the_table(repository: Path) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", page(repository), flags=re.MULTILINE))
    assert set(rows) == {*registry("balancer").names(), "none", "sequence"}
    schema = TypeAdapter(BalancingConfig).json_schema()["$defs"]
    common = {"name", "granularity", "level", "every", "seed"}
    for definition in schema.values():
        name = definition["properties"].get("name", {}).get("const")
        if name is not None:
            options = set(definition["properties"]) - common
            last = rows[name].rsplit("|", 1)[1]
            assert set(re.findall(r"`(\w+)", last)) == options, name
            for option, value in re.findall(r"`(\w+): ([^`]+)`", last):
                assert definition["properties"][option]["default"] == yaml.safe_load(value), (name, option)


def test_configurations_of_the_page(repository: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page(repository), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        config = TypeAdapter(BalancingConfig).validate_python(yaml.safe_load(block)["balancing"])
        assert len(build_balancing(config, ["buy", "cart"], []).stages) >= 1


def test_update_sizes_of_the_page() -> None:
    same = torch.full((1, 4, 4), 2.0)
    for name in registry("balancer").names():
        target = {"target": "a"} if name in {"metabalance", "surgery", "similarity"} else {}
        config = TypeAdapter(BalancingConfig).validate_python({"name": name, **target})
        balancing = build_balancing(config, ["a", "b", "c", "d"], [object()])  # type: ignore[list-item]
        total = balancing.step(same, torch.ones(4), 0).coefficients.sum().item()
        wanted = {"cagrad": 4 * 1.5 / 1.25}.get(name, 4.0)
        assert abs(total - wanted) < 1e-6, name


def test_example(repository: Path) -> None:
    plain, balanced = runpy.run_path(str(repository / "docs" / "examples" / "gradient_balance.py"))["main"]()
    assert plain > 0.6
    assert balanced < 0.3
