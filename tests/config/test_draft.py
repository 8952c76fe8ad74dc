"""Drafted configurations: valid for any data set, teaching, and trained as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_mtl.config.check import check_against_data_set
from dlrm_mtl.config.draft import draft_config
from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from tests import synthetic
from tests.hostile import NAMES

ROOT = Path(__file__).parents[2]


@st.composite
def data_sets(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a dataset.yaml with features and labels of all kinds, some with odd names."""
    names = draw(
        st.lists(st.sampled_from([*NAMES, "yes", "1", "null", "a: b", "#"]), min_size=3, max_size=9, unique=True)
    )
    rate = draw(st.sampled_from([None, 0.5, 1e-4]))
    features: list[dict[str, Any]] = [{"name": f"{names[0]}_u", "kind": "sparse", "vocabulary_size": 10}]
    if draw(st.booleans()):
        features.append({"name": f"{names[1]}_i", "kind": "sparse", "unbounded": True})
    if draw(st.booleans()):
        features.append({"name": f"{names[1]}_d", "kind": "dense"})
    if draw(st.booleans()):
        features.append({"name": f"{names[1]}_s", "kind": "sequence", "vocabulary": features[0]["name"]})
    labels = [{"name": name, **({} if rate is None else {"mean": rate})} for name in names]
    for label in labels[: draw(st.integers(0, len(labels)))]:
        label["kind"] = "real"
    rows = draw(st.sampled_from([None, 1, 63, 10_000, 10**9]))
    return {
        "name": draw(st.sampled_from([*NAMES, "..", "-"])),
        "splits": {name: {"folder": name, "rows": rows} for name in ("train", "validation", "test")},
        "features": features,
        "labels": labels,
    }


@given(data_sets())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_draft_is_valid(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("data [x]")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    file = folder / "run.yaml"
    file.write_text(draft_config(str(folder)))
    config = load_config(file)
    check_against_data_set(config, "run.yaml")
    assert [task.name for task in config.tasks] == [label["name"] for label in content["labels"]]
    assert config.data.path == str(folder)


def test_the_shipped_data_set_and_a_label_without_positives(tmp_path: Path) -> None:
    text = draft_config(str(ROOT / "datasets" / "kuairand_pure"))
    assert "is_like}  # positive in " in text
    content = yaml.safe_load((ROOT / "datasets" / "kuairand_pure" / "dataset.yaml").read_text())
    content["labels"] = [{"name": "never", "mean": 0.0}, {"name": "click", "mean": 0.3}]
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    text = draft_config(str(tmp_path))
    assert "  # never is left out: it is the same in all training rows" in text
    assert text == draft_config(str(tmp_path / "dataset.yaml"))
    content["labels"].pop()
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="no label has both values in the training rows"):
        draft_config(str(tmp_path))


def test_from_a_data_set_to_a_model(tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    data, config = synthetic.write_dataset(tmp_path / "data", rows=400), tmp_path / "run.yaml"
    code, printed = call("train", data)
    assert code == 2
    assert (
        f"this is a data set, not a configuration; draft one with `dlrm-mtl init {data} --output run.yaml`" in printed
    )
    assert call("train", data / "dataset.yaml")[0] == 2
    code, printed = call("init", data, "--output", config)
    assert (code, printed) == (0, f"{config}: written; look through it, then: dlrm-mtl train {config}\n")
    code, printed = call("init", data, "--output", config)
    assert code == 2
    assert "this file is there already" in printed
    code, printed = call("init", data)
    assert printed == config.read_text()
    code, printed = call("train", config, "--output", tmp_path / "run")
    assert code == 0, printed
    assert (tmp_path / "run" / "results.json").is_file()
