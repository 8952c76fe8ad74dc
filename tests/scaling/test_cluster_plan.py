"""Plans of clusters by the command, and trainings with a written plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.embeddings.tables import EmbeddingTable
from dlrm_mtl.embeddings.torchrec.plan import Processes
from dlrm_mtl.embeddings.torchrec.plan_file import PlanFile, read_plan, write_plan
from dlrm_mtl.scaling.placement import cut
from tests import commands, synthetic

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=400)
    content = synthetic.config(folder, training={"epochs": 1, "max_steps": 4, "log_every": 1})
    return commands.write_config(folder / "run.yaml", content)


def planned(call: Call, config: Path, *arguments: object) -> Any:
    code, printed = call("plan", config, "--json", *arguments)
    assert code == 0, printed
    return json.loads(printed)


def test_a_cluster(call: Call, config: Path) -> None:
    sizes = ["--set", "data.lanes=128", "--set", "data.batch_size=8192", "--set", "data.evaluation_batch_size=128"]
    plan = planned(call, config, "--hardware", "h100x8", "--hosts", 16, *sizes)
    assert (plan["processes"], plan["processes_per_host"], len(plan["held_bytes"])) == (128, 8, 128)
    assert plan["step_seconds"] == pytest.approx(sum(plan["parts"].values()))
    assert plan["rows_per_second"] == pytest.approx(8192 / plan["step_seconds"])
    assert plan["bound"] == max(plan["parts"], key=plan["parts"].get)
    assert plan["lookups_sampled"]
    assert {table["table"]: table["ids_per_row"] for table in plan["tables"]}["user"] == pytest.approx(0.95, abs=0.05)
    theirs = planned(call, config, "--hardware", "h100x8", "--hosts", 16, "--planner", "torchrec", *sizes)
    assert plan["step_seconds"] <= theirs["step_seconds"]
    code, page = call("plan", config, "--hardware", "h100x8", "--hosts", 16, *sizes)
    assert code == 0, page
    assert "on 128 process(es), 16 host(s) of h100x8" in page
    assert "bound (" in page


def test_a_run_takes_a_written_plan_and_learns_the_same(call: Call, config: Path, tmp_path: Path) -> None:
    file, losses = tmp_path / "plan.json", {}
    pattern = ["--set", "sharding.tables={'[tu]*': row_wise, item: {type: column_wise, column_shards: 2}}"]
    written = planned(call, config, "--hardware", "cpu", "--processes", 2, "--write", file, *pattern)
    assert [table["type"] for table in written["tables"]] == ["row_wise", "column_wise", "row_wise"]
    for name, options in {"plain": [], "planned": ["--set", f"sharding.plan={file}"]}.items():
        run = tmp_path / name
        done = commands.run("train", config, "--output", run, *options, processes=2)
        assert done.returncode == 0, done.stderr
        losses[name] = commands.losses(run / "metrics.jsonl")
    assert len(losses["plain"]) == 4
    for step, by_task in losses["plain"].items():
        assert losses["planned"][step] == pytest.approx(by_task, rel=1e-5)
    used = json.loads((tmp_path / "planned" / "plan.json").read_text())
    assert [table["type"] for table in used] == ["row_wise", "column_wise", "row_wise"]
    evaluated = commands.run("evaluate", tmp_path / "planned", "--split", "validation")
    assert evaluated.returncode == 0, "on another number of processes"
    shown = planned(call, config, "--hardware", "cpu", "--processes", 2, "--set", f"sharding.plan={file}")
    assert shown["planner"] == str(file)
    assert shown["parts"] == written["parts"]
    code, printed = call("train", config, "--output", tmp_path / "no", "--set", f"sharding.plan={file}")
    assert code == 2
    assert f"sharding.plan: {file} is for 2 processes, 2 a host, and this run has 1, 1 a host; write a plan" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--hardware", "h100"], "there is no such hardware; did you mean 'h100x8'?"),
        (["--planner", "best"], "--planner best: there is no such planner; choose cost or torchrec."),
        (["--hardware", "cpu", "--memory", "2MB", "--processes", "1"], "are missing; of"),
        (["--hardware", "cpu", "--gpu-memory", "1GB"], "--gpu-memory 1GB: cpu has no GPU"),
        (["--hardware", "cpu", "--set", "sharding.tables={'x*': row_wise}"], "sharding.tables.x*: no table has a name"),
        (["--hardware", "cpu", "--write", "/no/such/plan.json"], "/no/such/plan.json: cannot be written"),
    ],
)
def test_mistakes(call: Call, config: Path, arguments: list[str], sentence: str) -> None:
    code, printed = call("plan", config, "--set", "model.embeddings.dim=512", *arguments)
    assert code == 2, printed
    assert sentence in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_table_without_room_is_named_with_what_is_missing(call: Call, config: Path) -> None:
    wide = ["--set", "model.embeddings.tables={item: {dim: 4096}}", "--set", "sharding.default=table_wise"]
    code, printed = call("plan", config, "--hardware", "cpu", "--processes", 2, "--memory", "6MB", *wide)
    assert code == 2
    assert "sharding: table item (table_wise) needs 3.1 MiB of one process" in printed
    assert "let its rows be cut (sharding.tables.item: row_wise)" in printed


TABLES = [EmbeddingTable("a", 100, 32, ["a"]), EmbeddingTable("b", 7, 8, ["b"])]
GOOD: dict[str, Any] = {
    "processes": 4,
    "processes_per_host": 2,
    "tables": [
        {"table": "a", "rows": 100, "dim": 32, "type": "grid_shard", "columns": 2, "ranks": [0, 2]},
        {"table": "b", "rows": 7, "dim": 8, "type": "data_parallel"},
    ],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda plan: plan["tables"].pop(), "does not place table b"),
        (lambda plan: plan["tables"][0].update(table="c"), "places a table c, which the model lacks"),
        (lambda plan: plan["tables"][1].update(rows=8), "has table b with 8 rows x 8, and the model's is 7 x 8"),
        (
            lambda plan: plan["tables"][0].update(ranks=[0, 1]),
            r"the ranks \[0, 1\] and columns 2 of table a do not fit",
        ),
        (lambda plan: plan["tables"][0].update(ranks=[0, 4]), "do not fit grid_shard on 4 processes"),
        (lambda plan: plan["tables"][0].update(columns=3), "do not fit grid_shard"),
        (lambda plan: plan.update(processes=8), "is for 8 processes, 2 a host, and this run has 4, 2 a host"),
        (lambda plan: plan.update(format=2), "format: 2 is not a choice"),
        (lambda plan: plan.pop("processes"), "is no plan of dlrm-mtl plan --write"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, change: Callable[[Any], object], sentence: str) -> None:
    path, layout = tmp_path / "plan.json", Processes(4, 2)
    write_plan(path, PlanFile.model_validate(GOOD))
    assert read_plan(path, TABLES, layout) == PlanFile.model_validate(GOOD)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        read_plan(path, TABLES, layout)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "plan.json", TABLES, Processes(4, 2))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="it is not JSON"):
        read_plan(tmp_path / "plan.json", TABLES, Processes(4, 2))


@pytest.mark.parametrize("rows", [3, 4, 97, 1000])
@pytest.mark.parametrize(
    ("kind", "columns", "ranks"),
    [
        ("table_wise", 1, [3]),
        ("row_wise", 1, list(range(8))),
        ("column_wise", 4, [1, 3, 5, 7]),
        ("table_row_wise", 1, [4]),
        ("table_column_wise", 2, [4, 6]),
        ("grid_shard", 2, [4, 0]),
    ],
)
def test_shards_are_those_of_torchrec(rows: int, kind: str, columns: int, ranks: list[int]) -> None:
    placed = cut(kind, rows, 32, ranks, columns, 4)
    shape = torch.empty(rows, 32, device="meta")
    sizes, offsets = calculate_shard_sizes_and_offsets(shape, 8, 4, kind, 32 // columns)
    assert [list(size) for size in placed.sizes] == sizes
    assert [list(offset) for offset in placed.offsets] == offsets
    assert len(placed.ranks) == len(sizes)


def test_patterns() -> None:
    config = ShardingConfig.model_validate(
        {"default": "table_wise", "tables": {"user_*": "row_wise", "user_id": "data_parallel", "*_id": "column_wise"}}
    )
    assert config.of("user_id")[1].type == "data_parallel"
    assert config.of("user_name") == ("sharding.tables.user_*", config.tables["user_*"])
    assert config.of("item_id")[1].type == "column_wise"
    assert config.of("tags") == ("sharding.default", config.of("tags")[1])
    assert config.of("tags")[1].type == "table_wise"
