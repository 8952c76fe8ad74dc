"""Promise 5: a user's mistake ends in one sentence and exit code 2, without a traceback and without half an output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.cli import main
from tests import commands, synthetic
from tests.commands import write_config


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("pristine") / "data", rows=400)


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    training = {"epochs": 1, "max_steps": 4, "log_every": 1}
    return write_config(tmp_path / "run.yaml", synthetic.config(dataset, training=training))


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command line in this process and returns its sentence after checking how it left."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["dlrm-mtl", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = capfd.readouterr().err
        assert left.value.code == 2, printed
        assert "Traceback" not in printed
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, printed
        return lines[0]

    return run


def change(file: Path, column: str, values: Callable[[pa.ChunkedArray], object]) -> None:
    """Rewrite one column of a Parquet file."""
    table = pq.read_table(file)
    position = table.column_names.index(column)
    pq.write_table(table.set_column(position, column, values(table[column])), file, row_group_size=100)


def first_becomes(value: object) -> Callable[[pa.ChunkedArray], pa.Array]:
    """Replace the first value of a column."""
    return lambda column: pa.array([value, *column.to_pylist()[1:]])


def test_a_missing_configuration(mistake: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no such file" in mistake("train", tmp_path / "none.yaml")


def test_a_missing_data_set(mistake: Callable[..., str], config: Path, tmp_path: Path) -> None:
    message = mistake("train", config, "--set", f"data.path={tmp_path / 'nowhere'}", "--output", tmp_path / "out")
    assert str(tmp_path / "nowhere") in message
    assert not (tmp_path / "out").exists()


def test_an_empty_folder(mistake: Callable[..., str], config: Path, dataset: Path, tmp_path: Path) -> None:
    for file in (dataset / "train").iterdir():
        file.unlink()
    assert str(dataset / "train") in mistake("train", config, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "values", "parts"),
    [
        ("click", first_becomes(2), ["click", "2", "part-0.parquet"]),
        ("item", first_becomes(200), ["item", "200", "199"]),
        ("item", first_becomes(-1), ["item", "-1"]),
        ("user", lambda column: pc.cast(column, pa.string()), ["user", "string"]),
        ("tags", lambda column: pc.list_value_length(column).cast(pa.float64()), ["tags", "double"]),
        ("price", first_becomes(float("nan")), ["price", "nan"]),
        ("price", first_becomes(float("inf")), ["price", "inf"]),
        ("price", lambda column: pa.array(["cheap"] * len(column)), ["price", "string"]),
    ],
)
def test_columns_that_cannot_be_used(
    mistake: Callable[..., str],
    config: Path,
    dataset: Path,
    tmp_path: Path,
    column: str,
    values: Callable[[pa.ChunkedArray], object],
    parts: list[str],
) -> None:
    file = dataset / "train" / "part-0.parquet"
    change(file, column, values)
    message = mistake("train", config, "--output", tmp_path / "out").lower()
    for part in parts:
        assert part.lower() in message, message


def test_a_missing_column(mistake: Callable[..., str], config: Path, dataset: Path, tmp_path: Path) -> None:
    file = dataset / "validation" / "part-1.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["history"]), file)
    message = mistake("train", config, "--output", tmp_path / "out")
    assert "history" in message
    assert "part-1.parquet" in message


def test_a_truncated_file(mistake: Callable[..., str], config: Path, dataset: Path, tmp_path: Path) -> None:
    file = dataset / "train" / "part-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert "part-1.parquet" in mistake("train", config, "--output", tmp_path / "out")


def test_unknown_names(mistake: Callable[..., str], config: Path, tmp_path: Path) -> None:
    out = ["--output", tmp_path / "out"]
    assert "did you mean 'user'" in mistake("train", config, "--set", "data.sparse=[usr, item]", *out)
    assert "did you mean 'click'" in mistake("train", config, "--set", "tasks.0.label=clik", *out)
    assert "did you mean 'mean/auc'" in mistake(
        "train", config, "--set", "training.early_stopping.metric=mean/acu", *out
    )
    assert "did you mean 'item'" in mistake("train", config, "--set", "sharding.tables={itm: row_wise}", *out)
    assert "did you mean 'kuairand'" in mistake("prepare", "kuairnd", "--input", tmp_path, "--output", tmp_path / "x")


PRODUCT = "{name: both, label: buy, product_of: [click, buyy]}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["model.multitask={name: ple, levels: [[8]], task_experts: [1, 2, 1]}"],
            "model.multitask.task_experts: task_experts [1, 2, 1] has 3 entries and there are 2 tasks; give one number, or",
        ),
        ([f"tasks=[{{name: click}}, {{name: buy}}, {PRODUCT}]"], "tasks.2.product_of: there is no other task 'buyy'"),
        (
            ["balancing={name: metabalance, target: clik}"],
            "balancing.target: there is no task 'clik'; did you mean 'click'?",
        ),
        (["balancing=pcgard"], "balancing.name: 'pcgard' is not a choice; did you mean 'pcgrad'?"),
        (["tasks.1.loss=bpr"], "tasks.1.loss: bpr compares an item with others, and the model 'ranker' draws none"),
        (
            ["model={name: multitask_net, user: user, item: item}"],
            "tasks: multitask_net needs a task with a ranking loss, such as bpr, and finds none",
        ),
        (["model.dense_norm=standard"], "model.dense_norm: 'standard' is not a choice; did you mean 'standardise'?"),
    ],
)
def test_parts_that_do_not_fit_are_found_first(
    mistake: Callable[..., str], config: Path, tmp_path: Path, changes: list[str], sentence: str
) -> None:
    """Neither the data set nor the processes are touched for it: `config check` and `train` say the same."""
    overrides = [argument for change in ["data.path=/nowhere", *changes] for argument in ("--set", change)]
    message = mistake("config", "check", config, *overrides)
    assert message.startswith(f"error: {config}: {sentence}"), message
    assert mistake("train", config, "--output", tmp_path / "out", *overrides) == message
    assert not (tmp_path / "out").exists()


def test_output_folders_that_cannot_be_used(mistake: Callable[..., str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in mistake("train", config, "--output", tmp_path / "file" / "out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert "holds other files" in mistake("train", config, "--output", tmp_path / "photos")
    assert "cannot be written to" in mistake("train", config, "--output", "/proc/out")


def test_ids_out_of_range_may_be_read_as_unknown(config: Path, dataset: Path, tmp_path: Path) -> None:
    change(dataset / "train" / "part-0.parquet", "item", first_becomes(10_000))
    out = ["--output", tmp_path / "out", "--set", "data.out_of_range=unknown", "--set", "training.max_steps=7"]
    done = commands.run("train", config, *out, processes=2)
    assert done.returncode == 0, done.stderr
    assert "read as unknown: item 1" in done.stdout


def test_lanes_that_the_processes_do_not_divide(config: Path, tmp_path: Path) -> None:
    done = commands.run("train", config, "--output", tmp_path / "out", processes=3)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1, done.stderr
    assert "3" in lines[0]
    assert "lanes" in lines[0]
    assert not (tmp_path / "out").exists()


def test_mistakes_with_a_finished_run(
    mistake: Callable[..., str], config: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.parquet"
    monkeypatch.setattr(sys, "argv", ["dlrm-mtl", "train", str(config), "--output", str(run)])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code

    assert "already holds a run" in mistake("train", config, "--output", run)
    resume = ["train", config, "--output", run, "--resume"]
    assert "another model" in mistake(*resume, "--set", "model.tower.layers=[16]")
    assert "another model" in mistake(*resume, "--set", "optimizer.dense.name=adagrad")
    assert "data.batch_size was 64 and is now 32" in mistake(*resume, "--set", "data.batch_size=32")
    assert "seed was 3 and is now 4" in mistake(*resume, "--set", "seed=4")

    assert "did you mean 'test'" in mistake("evaluate", run, "--split", "tset")
    assert "no checkpoint 'step_9'" in mistake("evaluate", run, "--checkpoint", "step_9")
    assert "there is no run here" in mistake("evaluate", tmp_path)

    predict = ["predict", run, "--output", out, "--input"]
    assert "nowhere" in mistake(*predict, tmp_path / "nowhere")
    assert "prize" in mistake(*predict, dataset / "test", "--carry", "prize")
    assert "click" in mistake(*predict, dataset / "test", "--carry", "click")
    pq.write_table(pq.read_table(dataset / "test").drop_columns(["item"]), tmp_path / "rows.parquet")
    assert "item" in mistake(*predict, tmp_path / "rows.parquet")
    assert not out.exists()
    assert not list(tmp_path.glob("*.tmp"))
