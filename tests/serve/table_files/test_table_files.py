"""Tables as files for other programs, against the bytes of the bundle and the scores that they add up to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.table_files import write
from dlrm_mtl.serve.table_files.write import export_tables
from tests import s3

ROOT = Path(__file__).parents[3]
STEPS = ["training.max_steps=2", "training.evaluate_every=null"]


def read_safetensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """By the format's description: the header's length in 8 bytes, the header in JSON, the numbers."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__")
    types = {"F32": "<f4", "I64": "<i8"}
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        numbers = np.frombuffer(content[start + first : start + last], types[entry["dtype"]])
        found[name] = numbers.reshape(entry["shape"])
    return found


def vectors(table: pa.Table) -> NDArray[np.float32]:
    column = table["vector"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and bundles: with unbounded ids, and with columns that are padding."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("unbounded", "multitask_net"):
            config = dlrm_mtl.load_config(ROOT / f"configs/kuairand_{name}_debug.yaml", STEPS)
            dlrm_mtl.train(config, folder / name, progress=False)
            export_run(folder / name, folder / f"{name}_bundle")
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of more than 100 rows is written in several pieces."""
    monkeypatch.setattr(write, "PIECE", 1600)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("source", ["unbounded", "unbounded_bundle"])
def test_parquet_has_ids_values_and_vectors(home: Path, tmp_path: Path, source: str) -> None:
    data = None if source == "unbounded" else "datasets/kuairand_pure"
    assert export_tables(home / source, tmp_path / "out", data=data) == ["user_id", "video_id", "tag", "tab"]
    stored = read_safetensors(home / "unbounded_bundle/tables.safetensors")
    described = json.loads((tmp_path / "out/tables.json").read_text())["tables"]
    vocabularies = pq.read_table(ROOT / "datasets/kuairand_pure/vocabularies.parquet").to_pylist()
    for name in ("user_id", "video_id"):
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table.column_names == ["id", "vector"]
        ids = stored[f"ids.{name}"]
        taken = ids != 0
        taken[0] = True
        assert np.array_equal(table["id"], ids[taken])
        assert np.array_equal(vectors(table), stored[f"tables.{name}"][taken])
        assert 0 < len(table) < len(ids)
        assert described[name]["unbounded"]
        assert described[name]["rows"] == len(table)
    for name in ("tag", "tab"):
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
        assert np.array_equal(table["id"], np.arange(len(stored[f"tables.{name}"])))
        assert np.array_equal(vectors(table), stored[f"tables.{name}"])
        values = {row["id"]: row["value"] for row in vocabularies if row["feature"] == name}
        assert table["value"].to_pylist() == [values.get(row) for row in range(len(table))]
        assert len(values) > 10
        assert described[name]["features"] == [name]


def test_safetensors_has_all_tables(home: Path, tmp_path: Path) -> None:
    for source in ("unbounded", "unbounded_bundle"):
        export_tables(home / source, tmp_path / source, "safetensors")
    first, second = (tmp_path / name / "tables.safetensors" for name in ("unbounded", "unbounded_bundle"))
    assert first.read_bytes() == second.read_bytes()
    stored = read_safetensors(home / "unbounded_bundle/tables.safetensors")
    found = read_safetensors(first)
    assert list(found) == ["user_id", "user_id.ids", "video_id", "video_id.ids", "tag", "tab"]
    for name, array in found.items():
        key = f"ids.{name.removesuffix('.ids')}" if name.endswith(".ids") else f"tables.{name}"
        assert np.array_equal(array, stored[key])


@pytest.mark.parametrize("source", ["multitask_net", "multitask_net_bundle"])
def test_vectors_add_up_to_scores(home: Path, tmp_path: Path, source: str) -> None:
    """What a search index does: the products of a user with items, and the items' biases, order them as the model does."""
    export_tables(home / source, tmp_path / "out")
    users, items, biases = (
        vectors(pq.read_table(tmp_path / "out" / f"{name}.parquet"))
        for name in ("user_id", "video_id", "bias_video_id")
    )
    assert biases.shape[1] == 1, "padding is left out"
    rows = pq.read_table("datasets/kuairand_pure/test").slice(0, 200)
    user, item = rows["user_id"].to_numpy(), rows["video_id"].to_numpy()
    products = (users[user] * items[item]).sum(axis=1) + biases[item, 0]
    scores = dlrm_mtl.Scorer(home / "multitask_net_bundle").score(rows)[
        "is_click"
    ]  # of a ranking loss: the product itself
    np.testing.assert_allclose(products, scores, rtol=0, atol=1e-5)


def test_some_tables_to_an_object_store(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.object_store() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert export_tables(home / "unbounded", "s3://bucket/tables", names=["tag"]) == ["tag"]
        assert s3.files(s3.client(), "bucket/tables") == ["tables.json", "tag.parquet"]
        table = pq.read_table("bucket/tables/tag.parquet", filesystem=s3.client())
    export_tables(home / "unbounded", tmp_path / "out", names=["tag"])
    assert table.equals(pq.read_table(tmp_path / "out/tag.parquet"))


def test_mistakes_are_one_sentence(home: Path, tmp_path: Path) -> None:
    bundle, out = home / "unbounded_bundle", tmp_path / "out"
    with pytest.raises(UserError, match="--format csv: there is no such format; there are: parquet, safetensors"):
        export_tables(bundle, out, "csv")
    with pytest.raises(
        UserError, match=r"--table tags: there is no such table; did you mean 'tag'\? there are: tab, tag, "
    ):
        export_tables(bundle, out, names=["tags"])
    with pytest.raises(UserError, match="--checkpoint best: a bundle has one step"):
        export_tables(bundle, out, checkpoint="best")
    with pytest.raises(UserError, match=r"--data .*: there is no vocabularies\.parquet in this folder"):
        export_tables(bundle, out, data=str(tmp_path))
    with pytest.raises(UserError, match="there is no run here"):
        export_tables(tmp_path, out)
    assert not out.exists()
    export_tables(bundle, out)
    with pytest.raises(UserError, match=r"user_id\.parquet: this file exists already"):
        export_tables(bundle, out)


def test_vocabularies_of_other_data_are_refused(home: Path, tmp_path: Path) -> None:
    other = pa.table({"feature": ["tag"], "id": pa.array([47], pa.int32()), "value": ["x"], "count": [1]})
    pq.write_table(other, tmp_path / "vocabularies.parquet")
    with pytest.raises(UserError, match="has ids that are no rows of the table tag, which has 47"):
        export_tables(home / "unbounded", tmp_path / "out", names=["tag"], data=str(tmp_path))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bundle_needs_no_torchrec(home: Path, tmp_path: Path) -> None:
    """Neither for its tables nor for its graph."""
    script = (
        "import sys; sys.modules.update(torchrec=None, fbgemm_gpu=None)\n"
        "from dlrm_mtl.serve.graphs.export import export_graph\n"
        "from dlrm_mtl.serve.table_files.write import export_tables\n"
        "bundle, out = sys.argv[1:]\n"
        "export_tables(bundle, out)\n"
        "export_graph(bundle, f'{out}/graph.pt2')\n"
    )
    arguments = [sys.executable, "-c", script, str(home / "unbounded_bundle"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/graph.pt2").is_file()
