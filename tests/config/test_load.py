"""Configuration files: what is accepted, and what a mistake looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.config.load import dump_config, json_schema, load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.models.config import ModelConfig
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
        ("model.embeddings.dim=10", ["model.embeddings.dim", "10 is no multiple of 4; write 12"]),
        ("model.tower.dropout=1.5", ["model.tower", "dropout 1.5 is not in [0, 1)"]),
        ("tasks.1.name=click", ["tasks", "'click' is listed twice"]),
        ("tasks.7.name=click", ["--set tasks.7.name=click", "entries 0 to 1"]),
        ("training", ["--set training", "key.path=value"]),
        ("epochs=1", [": epochs: there is no key 'epochs' here; did you mean training.epochs? allowed:"]),
        ("training.seed=7", ["training.seed: there is no key 'seed' here; did you mean seed? allowed:"]),
        (
            "training.early_stopping.metric=mean/auk",
            ["training.early_stopping.metric: there is no metric 'mean/auk'; did you"],
        ),
        ("model.multitask=adatt", ["model.multitask.levels: this key is required"]),
        ("balancing={name: surgery, target: bye}", ["balancing.target: there is no task 'bye'; did you mean 'buy'?"]),
        (
            "model.multitask={name: ple, levels: [[4]], task_experts: [1]}",
            ["model.multitask.task_experts: task_experts [1]"],
        ),
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


def test_short_forms_are_names_and_keep_the_default_part(file: Path) -> None:
    config = load_config(
        file,
        ["optimizer.dense.learning_rate=0.1", "model.interaction=fm", "tasks=[click]", "optimizer.sparse=sgd"],
    )
    assert config.optimizer.dense.name == "adam"
    assert config.optimizer.dense.model_dump()["learning_rate"] == 0.1
    assert (config.model.interaction.name, config.optimizer.sparse.name) == ("fm", "sgd")  # type: ignore[attr-defined]
    assert [task.name for task in config.tasks] == ["click"]


def test_a_file_extends_another(tmp_path: Path) -> None:
    base = synthetic.config(Path("data"), balancing={"name": "pcgrad", "seed": 3})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "all.yaml").write_text(yaml.safe_dump(base))
    middle = {"extends": "base/all.yaml", "name": "middle", "training": {"epochs": 5}, "tasks": ["click"]}
    (tmp_path / "middle.yaml").write_text(yaml.safe_dump(middle))
    own = {
        "extends": "middle.yaml",
        "name": "own",
        "balancing": {"name": "mgda"},
        "model": {"multitask": {"experts": 2}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))

    config = load_config(tmp_path / "own.yaml", ["training.log_every=2"])
    assert (config.name, config.training.epochs, config.training.log_every) == ("own", 5, 2)
    assert [task.name for task in config.tasks] == ["click"]
    assert config.balancing.name == "mgda"  # without pcgrad's seed
    assert config.model.model_dump()["multitask"] == {
        **validate(ModelConfig, {"multitask": base["model"]["multitask"]}, "").model_dump()["multitask"],  # type: ignore[index]
        "experts": 2,
    }
    alone = tmp_path / "alone.yaml"
    alone.write_text(dump_config(config))
    assert "extends" not in alone.read_text()
    assert load_config(alone) == config


def test_a_circle_and_a_missing_file_are_sentences(tmp_path: Path) -> None:
    for name, other in (("a", "b.yaml"), ("b", "a.yaml"), ("c", "aa.yaml"), ("d", "[1]")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}\n")
    assert "files extend each other in a circle (a.yaml -> b.yaml -> a.yaml)" in mistake(tmp_path / "a.yaml")
    assert f"did you mean {tmp_path / 'a.yaml'}?" in mistake(tmp_path / "c.yaml")
    assert "extends: [1] is not the path of a file" in mistake(tmp_path / "d.yaml")


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
