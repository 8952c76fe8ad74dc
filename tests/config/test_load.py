"""Configuration files: what is accepted, and what a mistake looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.config.load import dump_config, json_schema, load_config
from dlrm_mtl.core.errors import UserError
from tests import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(synthetic.config(Path("data"))))
    return path


def mistake(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(file, list(overrides))
    return str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_a_dumped_configuration_reads_back(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["training.epochs=3", "sharding.tables={user: row_wise}"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_overrides(file: Path) -> None:
    config = load_config(
        file, ["training.epochs=3", "tasks.1.weight=2", "model.multitask={name: shared_bottom, layers: [8]}"]
    )
    assert config.training.epochs == 3
    assert config.tasks[1].weight == 2
    assert config.model.multitask.name == "shared_bottom"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.epoch=3", ["training.epoch", "did you mean 'epochs'?"]),
        ("model.multitask.expert=3", ["model.multitask.expert", "did you mean 'experts'?"]),
        (
            "model.multitask.name=mmoee",
            ["model.multitask.name", "'mmoee' is not a choice", "did you mean 'mmoe'?", "shared_bottom"],
        ),
        ("model.interaction.name=product", ["model.interaction.name", "'product'", "allowed: concat, dcnv2"]),
        ("optimizer.sparse.eps=-1", ["optimizer.sparse.eps", "-1", "greater than 0"]),
        ("optimizer.dense.name=adan", ["optimizer.dense.name", "did you mean 'adam'?"]),
        (
            "optimizer.dense={name: clippy_adagrad, lambda_rel: 0, lambda_abs: 0}",
            [": optimizer.dense: lambda_rel and lambda_abs are both 0"],
        ),
        ("sharding.default=rowwise", ["sharding.default", "'rowwise'", "did you mean 'row_wise'?"]),
        ("sharding.tables.user=rowwise", ["sharding.tables.user", "'rowwise'", "did you mean 'row_wise'?"]),
        ("data.batch_size=65", ["data", "batch_size 65 is not a multiple of lanes (4); set it to 64 or 68"]),
        ("training.epochs=many", ["training.epochs", "'many'", "integer"]),
        ("model.embeddings.dim=10", ["model.embeddings.dim", "10", "multiple of 4"]),
        ("model.tower.dropout=1.5", ["model.tower", "dropout 1.5 is not in [0, 1)"]),
        ("tasks.1.name=click", ["tasks", "'click' is listed twice"]),
        ("tasks.7.name=click", ["--set tasks.7.name=click", "entries 0 to 1"]),
        ("training", ["--set training", "key.path=value"]),
        ("seed.x=1", ["--set seed.x=1", "seed is a single value"]),
        ("tasks=[]", ["tasks", "the list is empty; add at least one entry"]),
        ("name=null", ["name", "None", "string"]),
    ],
)
def test_mistakes_name_place_value_and_remedy(file: Path, override: str, parts: list[str]) -> None:
    message = mistake(file, override)
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message


def test_every_mistake_gets_its_own_sentence(file: Path) -> None:
    message = mistake(file, "training.epoch=3", "seed=-1")
    assert len(message.splitlines()) == 2
    assert all(line.startswith(str(file)) for line in message.splitlines())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no such file" in mistake(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [1\nseed: 2")
    assert "line 2" in mistake(broken)
    broken.write_text("")
    assert "holds nothing" in mistake(broken)
    broken.write_text("- 1")
    assert "a list" in mistake(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in mistake(broken) or "not YAML" in mistake(broken)


def test_schema_describes_keys() -> None:
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    assert "initial weights" in schema["properties"]["seed"]["description"]
