"""A bundle: the same bytes whatever plan wrote the checkpoint, refused where a byte or a score is not as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import dlrm_mtl
from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.serve.bundle import FILES, FORMAT, OPTIONAL, Manifest, measure
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.table_export import TableOptions
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.training.build import build_model
from dlrm_mtl.training.tensors import RunTensors
from tests import commands, synthetic
from tests.processes import run_processes

TYPES = ["table_wise", "row_wise", "column_wise", "data_parallel", "grid_shard", "table_row_wise", "table_column_wise"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    data = synthetic.write_dataset(folder / "data", rows=400)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 4, "log_every": 2})
    config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
    dlrm_mtl.train(config, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def pristine(run: Path) -> Path:
    export_run(run, run.parent / "bundle")
    return run.parent / "bundle"


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_again(rank: int, run: Path, types: list[str]) -> None:
    """Write copies of a run, ``TYPE-PROCESSES``, whose checkpoint this plan has written; to be called on every process."""
    with process_group() as process:
        for kind in types:
            copy = run.parent / f"{kind}-{process.world_size}"
            if rank == 0:
                shutil.copytree(run, copy, ignore=shutil.ignore_patterns("step_*"))
            hosts = ["sharding.processes_per_host=2"] if process.world_size == 4 else []
            config = load_config(run / "config.yaml", [f"sharding.default={kind}", *hosts])
            model = build_model(config, open_dataset(config.data.path).spec, process)
            old, new = Checkpoints(LocalStore(run)), Checkpoints(LocalStore(copy))
            state = old.load("best", RunTensors(model))
            dist.barrier()  # rank 0 has made the folder
            new.save(RunTensors(model), state)


def test_the_same_bytes_from_another_plan(run: Path, pristine: Path) -> None:
    write_again(0, run, ["row_wise"])
    export_run(run.parent / "row_wise-1", run.parent / "other")
    assert content(run.parent / "other") == content(pristine)
    rounded = TableOptions("int8", auc=1.0, loss=1.0)
    for name in ("run", "row_wise-1"):
        export_run(run.parent / name, run.parent / f"{name}_int8", tables=rounded)
    assert content(run.parent / "run_int8") == content(run.parent / "row_wise-1_int8")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_same_bytes_from_every_plan(run: Path, pristine: Path, tmp_path: Path, processes: int) -> None:
    source = Path(shutil.copytree(run, tmp_path / "run"))
    run_processes(processes, write_again, source, TYPES)
    for kind in TYPES:
        export_run(tmp_path / f"{kind}-{processes}", tmp_path / f"bundle_{kind}")
        assert content(tmp_path / f"bundle_{kind}") == content(pristine), kind


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("file", [*FILES, "bundle.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_is_refused(bundle: Path, file: str, damage: Callable[[Path], None]) -> None:
    damage(bundle / file)
    with pytest.raises(UserError) as error:
        dlrm_mtl.Scorer(bundle)
    sentence = str(error.value)
    assert sentence.startswith(str(bundle))
    assert "\n" not in sentence
    if file != "bundle.json":
        assert sentence.startswith(str(bundle / file))
        assert sentence.endswith("the bundle was changed or is damaged: export it again.")


def test_every_page_is_checked_on_demand(bundle: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call("bundle", "verify", bundle)
    assert (code, printed.startswith(f"{bundle}: version {dlrm_mtl.Scorer(bundle).version}, ")) == (0, True), printed
    flip(bundle / "tables.safetensors")
    code, printed = call("bundle", "verify", bundle)
    assert code == 2
    assert printed.startswith(f"error: {bundle}/tables.safetensors: the page from byte ")


@pytest.mark.parametrize("name", OPTIONAL)
def test_files_that_are_not_listed_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_text("{}")
    with pytest.raises(UserError, match=r"is not one of the files that bundle\.json lists; the bundle was changed"):
        dlrm_mtl.Scorer(bundle)


def test_an_unknown_file_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["more.json"] = manifest["files"]["model.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"names more\.json, which this version of dlrm-mtl does not know"):
        dlrm_mtl.Scorer(bundle)


def test_files_that_change_places_are_refused(bundle: Path) -> None:
    (bundle / "dense.safetensors").rename(bundle / "other")
    (bundle / "tables.safetensors").rename(bundle / "dense.safetensors")
    (bundle / "other").rename(bundle / "tables.safetensors")
    with pytest.raises(UserError, match=r"(tables|dense)\.safetensors: has .* bytes instead of .*: export it again\.$"):
        dlrm_mtl.Scorer(bundle)


def sign(bundle: Path) -> None:
    """Make the checksums fit the files."""
    manifest = Manifest(format=FORMAT, files={name: measure(bundle / name) for name in FILES})
    (bundle / "bundle.json").write_text(manifest.model_dump_json(indent=1))


def change_model(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    model = json.loads((bundle / "model.json").read_text())
    change(model)
    (bundle / "model.json").write_text(json.dumps(model))
    sign(bundle)


def other_mean(model: dict[str, Any]) -> None:
    (age,) = [feature for feature in model["dataset"]["features"] if feature["name"] == "age"]
    age["statistics"]["mean"] = 41.0


def other_pooling(model: dict[str, Any]) -> None:
    model["model"]["embeddings"]["tables"]["tags"]["pooling"] = "mean"


@pytest.mark.parametrize(("change", "feature"), [(other_mean, "age"), (other_pooling, "tags")])
def test_the_first_feature_that_differs_is_named(
    bundle: Path, change: Callable[[dict[str, Any]], None], feature: str
) -> None:
    change_model(bundle, change)
    with pytest.raises(
        UserError, match=f"on the golden rows the feature '{feature}' gives the model other numbers here"
    ):
        dlrm_mtl.Scorer(bundle)


def test_the_first_task_that_differs_is_named(bundle: Path) -> None:
    lines = (bundle / "golden.jsonl").read_text().splitlines()
    golden = json.loads(lines[7])
    golden["scores"]["buy"] += 1e-3
    lines[7] = json.dumps(golden)
    (bundle / "golden.jsonl").write_text("\n".join(lines))
    sign(bundle)
    with pytest.raises(
        UserError, match=r"task 'buy' scores 0\.\d+ on golden row 7 where the trained model gave 0\.\d+"
    ):
        dlrm_mtl.Scorer(bundle)


def test_nothing_is_imported_for_a_bundle(bundle: Path) -> None:
    change_model(bundle, lambda model: model.update(plugins=["json.tool"]))
    with pytest.raises(UserError, match=r"parts of the module 'json\.tool', which runs when it is imported; name it"):
        dlrm_mtl.Scorer(bundle)
    assert dlrm_mtl.Scorer(bundle, plugins=["json.tool"]).tasks == ["click", "buy"]


def test_an_unknown_format_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(UserError, match="has the format 1 and this version of dlrm-mtl reads 2; export the run again"):
        dlrm_mtl.Scorer(bundle)


def test_a_bundle_is_written_whole_or_not_at_all(
    run: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="this folder exists already; name another with --output, or remove it"):
        export_run(run, pristine)
    with pytest.raises(UserError, match="a bundle is written to a local folder"):
        export_run(run, "s3://bucket/bundle")
    left = tmp_path / "bundle.tmp"
    left.mkdir()
    (left / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="this name is needed while the bundle is written, and taken; remove it"):
        export_run(run, tmp_path / "bundle")
    (left / "mine.txt").rename(left / "model.json")  # as a killed export leaves
    export_run(run, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(pristine)

    def differs(*_: object) -> float:
        raise UserError("task 'click' scores otherwise")

    monkeypatch.setattr("dlrm_mtl.serve.scorer.compare_scores", differs)
    with pytest.raises(UserError, match="task 'click' scores otherwise"):
        export_run(run, tmp_path / "another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_serving_imports_neither_torchrec_nor_fbgemm(bundle: Path) -> None:
    script = (
        "import sys, dlrm_mtl.serve; scorer = dlrm_mtl.serve.Scorer(sys.argv[1]);"
        "scorer.score([dict(user=1, item=2, tags=[3], history=[4, 5], age=30, price=1.0)]);"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('torchrec', 'fbgemm_gpu', 'duckdb', 'tensorboard')))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
