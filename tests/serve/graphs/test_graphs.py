"""Exported graphs: every model of configs/ through torch.export and ONNX, fed with rows that were not golden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _pytest.mark import ParameterSet
from numpy.typing import NDArray

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.bundle import BUNDLE_FILE, GOLDEN_FILE, Manifest, measure
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.golden import read_golden, read_raw_golden
from dlrm_mtl.serve.graphs import formats
from dlrm_mtl.serve.graphs.export import export_graph
from dlrm_mtl.serve.graphs.inputs import Arrays

ROOT = Path(__file__).parents[3]
QUICK = {"kuairand_flattened_debug", "kuairand_multitask_net_debug", "kuairand_unbounded_debug"}
"""One of each way to the tables; architectures differ in between only."""


def configurations() -> list[ParameterSet]:
    paths = sorted((ROOT / "configs").glob("*_debug.yaml"))
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in paths]


def rows() -> pa.Table:
    """Rows behind the golden ones."""
    return pq.read_table(ROOT / "datasets/kuairand_pure/test").slice(5000, 333)


def bundle_of(config: Path, folder: Path, *overrides: str, calibrate: Sequence[str] = ()) -> Path:
    """A bundle of a model with wide weights, so that rows get different scores."""
    steps = ["training.max_steps=2", "training.evaluate_every=null", "seed=2", *overrides]
    loaded = dlrm_mtl.load_config(config, steps)
    if "multitask_net" not in config.stem:  # whose `embeddings` is something else, and whose weights are wide
        wide = "model.embeddings.init_std=2" if hasattr(loaded.model, "embeddings") else "model.init_std=2"
        loaded = dlrm_mtl.load_config(config, [*steps, wide])
    dlrm_mtl.train(loaded, folder / "run", progress=False)
    export_run(folder / "run", folder / "bundle", calibrate=calibrate)
    return folder / "bundle"


def run_torch(path: Path, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """As a program does that has PyTorch only."""
    module = torch.export.load(path).module()
    scores = module({name: torch.from_numpy(array) for name, array in arrays.items()})
    return {task: values.numpy() for task, values in scores.items()}


def run_onnx(path: Path, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == list(arrays)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, arrays), strict=True))


RUN = {"torch": (run_torch, "pt2"), "onnx": (run_onnx, "onnx")}


@pytest.mark.parametrize("config", configurations())
def test_a_graph_scores_like_the_bundle(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    bundle = bundle_of(config, tmp_path)
    scorer, inputs, table = dlrm_mtl.Scorer(bundle), dlrm_mtl.GraphInputs(bundle), rows()
    if "unbounded" in config.stem:  # ids that training has not met
        column = table.schema.get_field_index("user_id")
        table = table.set_column(column, "user_id", pa.array(np.arange(len(table)) * 1_000_003))
    wanted = scorer.score(table)
    for name, (run, ending) in RUN.items():
        path = tmp_path / f"graph.{ending}"
        assert export_graph(bundle, path, name) <= 1e-6
        found = run(path, inputs(table))
        assert list(found) == scorer.tasks
        for task, scores in found.items():
            assert scores.dtype == np.float32
            assert len(np.unique(scores)) > 100
            np.testing.assert_allclose(scores, wanted[task], rtol=0, atol=1e-6)
        for count in (1, 2, 64):
            some = run(path, inputs(table.slice(7, count)))
            for task, scores in some.items():
                np.testing.assert_allclose(scores, wanted[task][7 : 7 + count], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def run(bundle: Path) -> Path:
    return bundle.parent / "run"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with features that are constants: an id, none, and a number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ROOT / "configs/kuairand_mmoe_debug.yaml"
        constants = "data.train_only={tab: 3, hour: null, duration_log: 2.5}"
        sparse = "data.sparse=[user_id, video_id, tag, tab, hour]"
        return bundle_of(config, tmp_path_factory.mktemp("graphs"), sparse, constants)


def test_constants_are_no_inputs(bundle: Path, tmp_path: Path) -> None:
    inputs, table = dlrm_mtl.GraphInputs(bundle), rows()
    arrays = inputs(table.drop_columns(["tab", "hour", "duration_log"]))
    assert not {"tab.ids", "hour.ids"} & set(arrays)
    wanted = dlrm_mtl.Scorer(bundle).score(table)
    for name, (run, ending) in RUN.items():
        export_graph(bundle, tmp_path / f"graph.{ending}", name)
        for task, scores in run(tmp_path / f"graph.{ending}", arrays).items():
            np.testing.assert_allclose(scores, wanted[task], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "methods", [("platt", "isotonic"), pytest.param(("isotonic", "negatives:0.1"), marks=pytest.mark.slow)]
)
def test_a_calibrated_bundle_has_calibrated_graphs(run: Path, tmp_path: Path, methods: tuple[str, str]) -> None:
    tasks = ("is_click", "long_view")
    export_run(
        run, tmp_path / "bundle", calibrate=[f"{task}={method}" for task, method in zip(tasks, methods, strict=True)]
    )
    table = rows()
    scorer, arrays = dlrm_mtl.Scorer(tmp_path / "bundle"), dlrm_mtl.GraphInputs(tmp_path / "bundle")(table)
    assert scorer.calibration is not None
    wanted, raw = scorer.score(table), scorer.score(table, raw=True)
    for name, (call, ending) in RUN.items():
        export_graph(tmp_path / "bundle", tmp_path / f"graph.{ending}", name)
        for task, scores in call(tmp_path / f"graph.{ending}", arrays).items():
            assert not np.allclose(wanted[task], raw[task], atol=1e-3)
            # A step of the map may be steep, so the prediction is moved by the tolerance, too.
            low, high = (scorer.calibration.apply(task, raw[task] + np.float32(step)) for step in (-1e-6, 1e-6))
            assert (scores >= low - 1e-6).all()
            assert (scores <= high + 1e-6).all()


def test_a_graph_says_what_it_is(bundle: Path, tmp_path: Path) -> None:
    export_graph(bundle, tmp_path / "graph.pt2")
    export_graph(bundle, tmp_path / "graph.onnx", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "graph.pt2"]
    stored = {formats.METADATA_FILE: ""}
    torch.export.load(tmp_path / "graph.pt2", extra_files=stored)
    model = onnx.load(tmp_path / "graph.onnx")
    (entry,) = [entry.value for entry in model.metadata_props if entry.key == formats.METADATA_KEY]
    inputs = dlrm_mtl.GraphInputs(bundle)
    arrays = inputs(rows())
    for said in (json.loads(stored[formats.METADATA_FILE]), json.loads(entry)):
        assert said["bundle"] == inputs.version == dlrm_mtl.Scorer(bundle).version
        assert said["inputs"] == {name: str(array.dtype) for name, array in arrays.items()}
        assert said["tasks"] == {"is_click": "binary", "long_view": "binary"}
    shapes = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in model.graph.input
    }
    assert shapes["user_id.ids"] == ["rows", "user_id.most"]
    assert shapes["user_id.lengths"] == ["rows"]
    assert shapes["dense"] == ["rows", arrays["dense"].shape[1]]


def test_inputs_are_ids_and_their_numbers(bundle: Path) -> None:
    inputs = dlrm_mtl.GraphInputs(bundle, missing={"*": "refuse", "user_id": "default"}, unknown="unknown")
    first, second = rows().slice(0, 2).to_pylist()
    first["long_watch_seq"], second["long_watch_seq"] = [5, 6, 7], None
    first["video_id"] = 10**9
    del second["user_id"]
    arrays = inputs([first, second])
    assert arrays["long_watch_seq.lengths"].tolist() == [3, 0]
    assert arrays["long_watch_seq.ids"].tolist() == [[5, 6, 7], [0, 0, 0]]
    assert arrays["user_id.lengths"].tolist() == [1, 0]
    assert arrays["video_id.ids"].tolist() == [[0], [second["video_id"]]]
    assert {name: array.dtype for name, array in arrays.items()}["dense"] == np.float32
    with pytest.raises(ValueError, match="no row"):
        inputs([])


def test_raw_rows_have_the_same_inputs(bundle: Path) -> None:
    prepared, _ = read_golden(bundle / GOLDEN_FILE)
    raw = read_raw_golden(bundle / GOLDEN_FILE)
    assert raw[:1] != prepared[:1]
    wanted, found = dlrm_mtl.GraphInputs(bundle)(prepared), dlrm_mtl.GraphInputs(bundle, rows="raw")(raw)
    assert list(found) == list(wanted)
    for name, array in found.items():
        assert np.array_equal(array, wanted[name])


def with_other_score(bundle: Path, folder: Path) -> Path:
    """A bundle whose first golden row has another score, by 2e-6."""
    copy = Path(shutil.copytree(bundle, folder / "other"))
    first, *rest = (copy / GOLDEN_FILE).read_text().splitlines()
    row = json.loads(first)
    row["scores"]["is_click"] += 2e-6
    (copy / GOLDEN_FILE).write_text("\n".join([json.dumps(row), *rest]) + "\n")
    manifest = Manifest.model_validate_json((copy / BUNDLE_FILE).read_bytes())
    manifest.files[GOLDEN_FILE] = measure(copy / GOLDEN_FILE)
    (copy / BUNDLE_FILE).write_text(manifest.model_dump_json(indent=1))
    return copy


def test_a_graph_with_other_scores_is_not_written(bundle: Path, tmp_path: Path) -> None:
    other = with_other_score(bundle, tmp_path)
    with pytest.raises(UserError, match=r"task 'is_click' scores \S+ on golden row 0 where the bundle gives"):
        export_graph(other, tmp_path / "graph.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("output", "format", "sentence"),
    [
        ("graph.pt2", "tensorrt", "--format tensorrt: there is no such format; there are: aoti, onnx, torch."),
        ("graph.pt2", "onnx", "files of this format end with .onnx; change the name."),
        ("s3://bucket/graph.pt2", "torch", "a graph is written to a local file; name one with --output"),
        ("bundle.json/graph.pt2", "torch", "cannot be written (Not a directory); name another place"),
        (".", "torch", "files of this format end with .pt2"),
    ],
)
def test_mistakes_are_one_sentence(bundle: Path, output: str, format: str, sentence: str) -> None:
    place = output if "://" in output else bundle / output
    with pytest.raises(UserError) as error:
        export_graph(bundle, place, format)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "graph.pt2").write_text("mine")
    with pytest.raises(UserError, match="this file exists already"):
        export_graph(bundle, tmp_path / "graph.pt2")
    assert (tmp_path / "graph.pt2").read_text() == "mine"


def test_a_compiled_graph_needs_a_compiler(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler 'g\+\+' here"):
        export_graph(bundle, tmp_path / "graph.pt2", "aoti")


@pytest.mark.slow
def test_a_compiled_graph_scores_like_the_bundle(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    export_graph(bundle, tmp_path / "graph.pt2", "aoti")
    module = torch._inductor.aoti_load_package(str(tmp_path / "graph.pt2"))
    assert "bundle" in json.loads(module.get_metadata()[formats.METADATA_KEY])
    table = rows()
    wanted = dlrm_mtl.Scorer(bundle).score(table)
    arrays = dlrm_mtl.GraphInputs(bundle)(table)
    for task, scores in module({name: torch.from_numpy(array) for name, array in arrays.items()}).items():
        np.testing.assert_allclose(scores.numpy(), wanted[task], rtol=0, atol=1e-6)
