"""The study of the assignment: its data, figures from curves, and the rank argument, against literal versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.experiments.config import read_sweep
from studies.assignment import Assignment, rank
from studies.frame import Training

FOLDER = Path(__file__).parents[2] / "studies" / "assignment"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 ratings in the layout of MovieLens 100K."""
    folder = tmp_path_factory.mktemp("ml")
    rng = np.random.default_rng(0)
    pairs = rng.permutation(943 * 1682)[:100_000]
    ratings = rng.integers(1, 6, 100_000)
    lines = [f"{p // 1682 + 1}\t{p % 1682 + 1}\t{r}\t880000000" for p, r in zip(pairs, ratings, strict=True)]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    flags = "|".join(["0"] * 18 + ["1"])
    (folder / "u.item").write_text("".join(f"{n}|film {n} (1990)|01-Jan-1990|||{flags}\n" for n in range(1, 1683)))
    (folder / "u.user").write_text("".join(f"{n}|30|M|other|12345\n" for n in range(1, 944)))
    return folder


def test_data_has_the_test_part_as_validation_split(files: Path, tmp_path: Path) -> None:
    study = Assignment(FOLDER)
    with pytest.raises(UserError, match="--data FOLDER: is needed the first time; name the folder with MovieLens 100K"):
        study.prepare(None, tmp_path / "none")
    settings = study.prepare(files, tmp_path)["sweep"]
    assert {"sweep": settings} == study.prepare(None, tmp_path), "the second time nothing is prepared"
    dataset = open_dataset(settings["data.path"])
    assert {name: split.rows for name, split in dataset.spec.splits.items()} == {
        "train": 95000,
        "test": 5000,
        "validation": 5000,
    }
    assert dataset.folder("validation") == dataset.folder("test")
    table = np.loadtxt(files / "u.data", dtype=np.int64)
    expected = table[np.random.RandomState(123).permutation(100_000)[95_000:]]
    assert sorted(map(tuple, rank.pairs_of(tmp_path / "data/test").T.tolist())) == sorted(
        map(tuple, expected[:, :2].tolist())
    )


class Recorded:
    """Curves of a run."""

    def __init__(self, **curves: list[float]) -> None:
        names = {"mse": ("validation", "rating/mse"), "mrr": ("validation", "watched/mrr")}
        names |= {"train_mse": ("train", "loss/rating"), "train_bpr": ("train", "loss/watched")}

        class Curve:
            def __init__(self, values: list[float]) -> None:
                self.values = np.array(values)

        self.curves = {names[name]: Curve(values) for name, values in curves.items()}


def test_figures_are_those_of_the_curves(tmp_path: Path) -> None:
    def training(method: str, seed: int, shift: float) -> Training:
        run: Any = Recorded(
            mse=[1.0, 0.8 + shift, 0.9],
            mrr=[0.1, 0.11, 0.12 + shift],
            train_mse=[2.0, 1.0, 0.5 + shift],
            train_bpr=[0.4, 0.3, 0.2],
        )
        return Training(method, {}, seed, False, run)

    study = Assignment(FOLDER)
    trainings = [
        training(m, s, s / 100 + (m[1] == "h") / 10) for s in (1, 2) for m in ("shared .5 .5", "separate .5 .5")
    ]
    figures = study.measure({"sweep": trainings}, tmp_path)
    first = figures["methods"]["separate .5 .5"]["seeds"][0]
    assert first["lowest MSE"] == {"epoch": 2, "MSE": 0.81, "MRR": 0.11}
    assert first["highest MRR"] == {"epoch": 3, "MSE": 0.9, "MRR": 0.13}
    assert figures["methods"]["separate .5 .5"]["curves"]["test MSE"]["mean"] == [1.0, 0.815, 0.9]
    shown = study.show(figures)
    text = shown.markdown()
    assert "| separate .5 .5 | 0.8100, 0.8200 | 0.8150 ± 0.0635 | 0.875 to 0.883 | missed by 0.0500 |" in text
    assert "| shared .5 .5 minus separate .5 .5 | **+0.1000 ± 0.0000** |" in text
    assert shown.plots["assignment"].startswith("<svg")


def test_the_sweep_has_four_experiments_of_200_epochs() -> None:
    sweep = read_sweep(FOLDER / "sweep.yaml")
    assert list(sweep.methods) == ["shared .99 .01", "shared .5 .5", "separate .99 .01", "separate .5 .5"]
    assert sweep.set["training.epochs"] == 200
    for name, method in sweep.methods.items():
        sharing, first, second = name.split()
        assert method.set["model.embeddings"] == sharing
        assert [task["weight"] for task in method.set["tasks"]] == [float(first), float(second)]


def test_ranks_and_a_bias_of_the_user() -> None:
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randn(n, 4, generator=generator) for n in (30, 20))
    bias, user_bias = torch.randn(20, generator=generator), torch.randn(30, generator=generator)
    assert rank.ranks(user, item, bias, user_bias) == {"u q": 4, "u q + b": 5, "u q + b + a": 6}
    pairs = np.stack([np.arange(30).repeat(3), np.random.default_rng(0).integers(1, 20, 90)])
    assert rank.largest_gradient(user, item, bias, user_bias, pairs) == 0.0


def test_the_metric_is_the_assignments() -> None:
    """Ranks by scipy, with training items forced to the end; id 0 has no rank."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(6, 12))
    held = [(user, item) for user in range(6) for item in rng.permutation(np.arange(1, 12))[:4]]
    train, test = np.array(held[::2]).T, np.array(held[1::2]).T
    means = []
    for user in np.unique(test[0]):
        own = -scores[user]
        own[train[1][train[0] == user]] = np.inf
        own[0] = np.inf
        means.append(np.mean(1 / rankdata(own)[test[1][test[0] == user]]))
    assert rank.mean_reciprocal_rank(scores, train, test) == pytest.approx(np.mean(means))
