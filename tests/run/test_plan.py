"""The plan before a run, against runs: where they put tables, and what their processes hold in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import this_process
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.embeddings.torchrec.plan import MIB
from dlrm_mtl.run.plan import memory_size
from dlrm_mtl.training.build import build_model, build_optimizers
from tests import commands, synthetic
from tests.processes import run_processes

ROWS = 4000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tables are much larger than rounding errors of the figures."""
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=400)
    for name in ("user", "item", "tags"):
        spec = (folder / "dataset.yaml").read_text()
        (folder / "dataset.yaml").write_text(
            spec.replace(f"vocabulary_size: {synthetic.SIZES[name]}", f"vocabulary_size: {ROWS}")
        )
    content = synthetic.config(folder, training={"epochs": 1, "max_steps": 1})
    return commands.write_config(folder / "run.yaml", content)


PLANS = [
    "sharding={default: row_wise}",
    "sharding={default: column_wise, tables: {user: data_parallel}}",
    "sharding={default: table_wise, tables: {item: grid_shard}, processes_per_host: 1}",
]
RULES = ["rowwise_adagrad", "clippy_rowwise_adagrad", "adam", "sgd"]


def planned(call: Callable[..., tuple[int, str]], config: Path, *arguments: object) -> Any:
    code, printed = call("plan", config, "--json", *arguments)
    assert code == 0, printed
    return json.loads(printed)


def test_it_is_the_plan_of_the_run(call: Callable[..., tuple[int, str]], config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = commands.run("train", config, "--output", run, processes=2)
    assert done.returncode == 0, done.stderr
    foreseen = planned(call, config, "--processes", 2)
    assert json.loads((run / "plan.json").read_text()) == foreseen["tables"]
    assert "tables on process" in done.stdout
    assert "MiB of weights and" in done.stdout


def test_it_foresees_the_memory_of_every_process(call: Callable[..., tuple[int, str]], config: Path) -> None:
    for plan, measured in zip(PLANS, zip(*run_processes(2, memory_held, str(config)), strict=True), strict=True):
        for rule, by_process in zip(RULES, zip(*measured, strict=True), strict=True):
            held = planned(call, config, "--processes", 2, "--set", plan, "--set", f"optimizer.sparse.name={rule}")[
                "held_mib"
            ]
            for each, (weights, state) in zip(held, by_process, strict=True):
                assert each["table_weights"] == pytest.approx(weights, abs=0.02), (plan, rule)
                assert each["table_state"] == pytest.approx(state, abs=0.02), (plan, rule)


def memory_held(rank: int, path: str) -> list[list[tuple[float, float]]]:
    """MiB of weights and of all that training adds to them in this process, by plan and rule, measured on real tensors."""
    found = []
    for plan in PLANS:
        found.append([])
        for rule in RULES:
            config = load_config(Path(path), [plan, f"optimizer.sparse.name={rule}"])
            model = build_model(config, open_dataset(config.data.path).spec, this_process())
            optimizer = build_optimizers(config, model, 1).sparse
            weights = sum(local.group.weights.nbytes for local in optimizer.tables)
            states = sum(state.nbytes for local in optimizer.tables for state in local.states.values())
            unused = sum(local.per_row.nbytes for local in optimizer.tables if local.per_row is not None)
            dense = sum(local.source.nbytes for local in optimizer.tables if not hasattr(local.source, "pending"))
            found[-1].append((weights / MIB, (states + unused + dense) / MIB))
    return found


def test_dense_part_and_ids_count(call: Callable[..., tuple[int, str]], config: Path) -> None:
    plain = planned(call, config)["held_mib"][0]
    wider = planned(call, config, "--set", "model.tower.layers=[512,512]")["held_mib"][0]
    assert wider["dense"] > plain["dense"] + 4 * 512 * 512 * 4 / MIB, "weights, gradients and two moments of Adam"
    unbounded = planned(call, config, "--set", "data.unbounded.user.rows=100000", "--processes", 2)["held_mib"][0]
    assert unbounded["ids"] == pytest.approx(100000 * 16 / 2 / MIB)
    assert unbounded["total"] == pytest.approx(
        sum(unbounded[part] for part in ("table_weights", "table_state", "dense", "ids"))
    )


def test_more_processes_than_this_machine_has(call: Callable[..., tuple[int, str]], config: Path) -> None:
    code, printed = call(
        "plan", config, "--processes", 64, "--hosts", 8, "--memory", "64GB", "--gpu-memory", "80GB", "--set", "data.lanes=64",
        "--set", "data.batch_size=64", "--set", "data.evaluation_batch_size=64", "--set", "sharding.default=row_wise",
    )  # fmt: skip
    assert code == 0, printed
    assert " 0-63 " in printed
    assert "of the 76,294 MiB that it has (its GPU, 8 process(es) a host)" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--processes", "4", "--hosts", "3"], "--hosts 3: does not divide 4 processes"),
        (["--processes", "7"], "data.lanes: 4 lanes cannot be shared equally by 7 processes"),
        (["--memory", "much"], "--memory much: is no amount of memory; write one such as 64GB or 80GiB."),
        (["--memory", "2MB"], "sharding: no plan fits 1 processes"),
        (["--memory", "2MB"], "MiB of weights, and 85% of 2 MiB is for the tables of a process; use smaller tables"),
        (
            ["--set", "sharding.tables.usr=row_wise"],
            "sharding.tables.usr: there is no such table; did you mean 'user'?",
        ),
    ],
)
def test_mistakes(call: Callable[..., tuple[int, str]], config: Path, arguments: list[str], sentence: str) -> None:
    wide = ["--set", "model.embeddings.dim=128"]
    code, printed = call("plan", config, *wide, *arguments)
    assert code == 2, printed
    assert sentence in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_sizes() -> None:
    assert memory_size("64GB", "") == 64 * 10**9
    assert memory_size("1.5 GiB", "") == 3 * 2**29
    assert memory_size("500mb", "") == 5 * 10**8
    for text in ("64", "GB", "-1GB", "0GB", "1e9GB", ""):
        with pytest.raises(UserError):
            memory_size(text, "--memory")
