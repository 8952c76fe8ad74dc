"""Does sharing tables help ranking and rating on MovieLens 100K? Stanford's CS330 (2023), homework 0.

Four experiments: tables of the ranking and the rating shared or separate, weights .99 and .01, or .5 and .5, for 200 epochs.
As in the assignment, curves and best values are those of the test part: nothing is chosen on validation data, as its split
has none. One-epoch values show what a single model reaches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DATASET_FILE, SplitSpec
from dlrm_mtl.data.statistics import write_spec
from dlrm_mtl.prepare.movielens.adapter import prepare as prepare_movielens
from dlrm_mtl.prepare.movielens.divide import RatingSplit
from dlrm_mtl.reports.groups import mean_and_interval
from dlrm_mtl.reports.page import Cell, PageTable
from studies.assignment import rank
from studies.frame import Shown, Study, Training, need_data, prepared, run
from studies.plots import Band, curves

TARGETS = {
    # lowest MSE and highest MRR over the epochs, of a literal version in plain PyTorch: two seeds
    "shared .99 .01": ((0.863, 0.863), (0.130, 0.130)),
    "shared .5 .5": ((0.870, 0.875), (0.061, 0.062)),
    "separate .99 .01": ((0.875, 0.883), (0.131, 0.133)),
    "separate .5 .5": ((0.875, 0.883), (0.131, 0.133)),
}
TOLERANCES = (0.01, 0.004)
CURVES = {
    "train MSE": ("train", "loss/rating"),
    "train BPR loss": ("train", "loss/watched"),
    "test MSE": ("validation", "rating/mse"),
    "test MRR": ("validation", "watched/mrr"),
}
"""Kind and key of the entries in metrics.jsonl; the validation split is the test part."""
LIMITS = {"train MSE": (0, 1.2), "test MSE": (0.8, 2.6), "train BPR loss": (0.05, 0.4)}
PAIRS = (
    ("shared .99 .01", "separate .99 .01"),
    ("shared .5 .5", "separate .5 .5"),
    ("shared .99 .01", "shared .5 .5"),
    ("separate .99 .01", "separate .5 .5"),
)


class Assignment(Study):
    """The four experiments."""

    name = "assignment"
    raw = "MovieLens 100K (u.data, u.item, u.user)"

    def prepare(self, raw: Path | None, output: Path) -> Mapping[str, Mapping[str, Any]]:
        """Prepare the assignment's split, with the test part as the validation split as well."""
        data = output / "data"
        if not prepared(data):
            prepare_movielens(need_data(raw, str(self.raw)), data, split=RatingSplit.cs330)
        spec = open_dataset(str(data)).spec
        if "validation" not in spec.splits:
            test = spec.splits["test"]
            watched = SplitSpec(folder=test.folder, rows=test.rows, description="the test part, for the curves")
            write_spec(data / DATASET_FILE, spec.model_copy(update={"splits": {**spec.splits, "validation": watched}}))
        return {"sweep": {"data.path": str(data)}}

    def measure(self, trainings: Mapping[str, Sequence[Training]], output: Path) -> dict[str, Any]:
        """Values of every seed, mean curves, and ranks of the first run with shared tables."""
        methods: dict[str, Any] = {}
        for method in dict.fromkeys(each.method for each in trainings["sweep"]):
            own = [each for each in trainings["sweep"] if each.method == method]
            series = [
                {name: each.run.curves[key].values.tolist() for name, key in CURVES.items()} | {"seed": each.seed}
                for each in own
            ]
            methods[method] = {
                "seeds": [_of_seed(each) for each in series],
                "curves": {name: _mean([each[name] for each in series]) for name in CURVES},
            }
        first = next((each for each in trainings["sweep"] if each.method == "shared .99 .01"), None)
        found = rank.measure(first.run.path, output / "data") if first is not None else {}
        return {"methods": methods, "rank": found}

    def show(self, figures: Mapping[str, Any]) -> Shown:
        """Tables of best, one-epoch and last values, differences by seed, ranks; and the four curves."""
        methods = figures["methods"]
        tables = [_best(methods), _epochs(methods), *_differences(methods)]
        if figures["rank"]:
            tables.append(_ranks(figures["rank"]))
        panels = {
            title: {
                name: Band(each["curves"][title]["mean"], each["curves"][title]["half"])
                for name, each in methods.items()
            }
            for title in ("train MSE", "test MSE", "train BPR loss", "test MRR")
        }
        return Shown(tables, {"assignment": curves(panels, "epoch", LIMITS)})


def _of_seed(series: Mapping[str, Any]) -> dict[str, Any]:
    mse, mrr = series["test MSE"], series["test MRR"]
    lowest, highest = mse.index(min(mse)), mrr.index(max(mrr))
    return {
        "seed": series["seed"],
        "epochs": len(mse),
        "lowest MSE": {"epoch": lowest + 1, "MSE": mse[lowest], "MRR": mrr[lowest]},
        "highest MRR": {"epoch": highest + 1, "MSE": mse[highest], "MRR": mrr[highest]},
        "last": {
            "MSE": mse[-1],
            "MRR": mrr[-1],
            "train MSE": series["train MSE"][-1],
            "train BPR": series["train BPR loss"][-1],
        },
    }


def _mean(rows: Sequence[Sequence[float]]) -> dict[str, list[float | None]]:
    length = min(map(len, rows))
    pairs = [mean_and_interval([row[epoch] for row in rows]) for epoch in range(length)]
    return {
        "mean": [_rounded(mean) for mean, _ in pairs],
        "half": [_rounded(half) if math.isfinite(half) else None for _, half in pairs],
    }


def _rounded(value: float) -> float:
    return float(np.format_float_positional(value, precision=4, unique=False, fractional=False))


def _values(method: Mapping[str, Any], *keys: str) -> list[float]:
    found = []
    for seed in method["seeds"]:
        value = seed
        for key in keys:
            value = value[key]
        found.append(value)
    return found


def _spread(values: Sequence[float], digits: int) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def _best(methods: Mapping[str, Any]) -> PageTable:
    rows: list[list[str | Cell]] = []
    for name, method in methods.items():
        cells: list[str | Cell] = [name]
        for where, key, target, tolerance in zip(
            ("lowest MSE", "highest MRR"), ("MSE", "MRR"), TARGETS[name], TOLERANCES, strict=True
        ):
            values = _values(method, where, key)
            low, high = target
            mean = statistics.fmean(values)
            off = max(low - mean, mean - high, 0.0)
            cells += [
                ", ".join(f"{value:.4f}" for value in values),
                _spread(values, 4),
                f"{low:.3f}" + ("" if low == high else f" to {high:.3f}"),
                "within" if off <= tolerance else f"missed by {off - tolerance:.4f}",
            ]
        rows.append(cells)
    heads = ["experiment"]
    for key, tolerance in (("lowest test MSE", TOLERANCES[0]), ("highest test MRR", TOLERANCES[1])):
        heads += [key, "mean", "target", f"within {tolerance:g}?"]
    return PageTable(heads, rows, caption="Best values over the epochs, each metric by itself, by seed")


def _epochs(methods: Mapping[str, Any]) -> PageTable:
    rows = []
    for name, method in methods.items():
        cells = [name]
        for where in ("lowest MSE", "highest MRR"):
            numbers = [f"{epoch:.0f}" for epoch in _values(method, where, "epoch")]
            cells += [
                ", ".join(numbers),
                _spread(_values(method, where, "MSE"), 3),
                _spread(_values(method, where, "MRR"), 4),
            ]
        cells += [_spread(_values(method, "last", key), digits) for key, digits in LAST]
        rows.append(cells)
    heads = ["experiment", "epochs of lowest MSE", "MSE", "MRR", "epochs of highest MRR", "MSE", "MRR"]
    heads += [f"last epoch: {key}" for key, _ in LAST]
    return PageTable(heads, rows, caption="What one epoch has: test part, mean and 95 % interval over seeds")


LAST = (("MSE", 3), ("MRR", 4), ("train MSE", 3), ("train BPR", 4))


def _differences(methods: Mapping[str, Any]) -> list[PageTable]:
    measures: dict[str, Callable[[Mapping[str, Any]], dict[int, float]]] = {
        "train MSE, last": lambda method: _by_seed(method, "last", "train MSE"),
        "train BPR, last": lambda method: _by_seed(method, "last", "train BPR"),
        "test MSE, lowest": lambda method: _by_seed(method, "lowest MSE", "MSE"),
        "test MSE, last": lambda method: _by_seed(method, "last", "MSE"),
        "test MRR, highest": lambda method: _by_seed(method, "highest MRR", "MRR"),
        "test MRR, last": lambda method: _by_seed(method, "last", "MRR"),
    }
    rows: list[list[str | Cell]] = []
    for first, second in PAIRS:
        if first not in methods or second not in methods:
            continue
        row: list[str | Cell] = [f"{first} minus {second}"]
        for of in measures.values():
            ours, theirs = of(methods[first]), of(methods[second])
            mean, half = mean_and_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
            text = f"{mean:+.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")
            row.append(Cell(text, strong=math.isfinite(half) and abs(mean) > half))
        rows.append(row)
    caption = "Differences seed by seed: mean and 95 % interval; bold excludes 0"
    return [PageTable(["difference", *measures], rows, caption=caption)] if rows else []


def _by_seed(method: Mapping[str, Any], *keys: str) -> dict[int, float]:
    return dict(zip(_values(method, "seed"), _values(method, *keys), strict=True))  # type: ignore[arg-type]


def _ranks(found: Mapping[str, Any]) -> PageTable:
    rows = [[f"rank of the scores, {name}", str(value)] for name, value in found["ranks"].items()]
    rows.append(["test MRR without a", f"{found['mrr']:.6f}"])
    rows.append(["test MRR with a from N(0, 1)", f"{found['mrr with a']:.6f}"])
    rows.append(["largest derivative of the BPR loss by a", f"{found['largest gradient of a']:.1e}"])
    caption = f"Tables of the first run of shared .99 .01, d = {found['dim']}: a bias a of the user"
    return PageTable(["figure", "value"], rows, caption=caption)


def main(arguments: Sequence[str]) -> None:
    """Run the study."""
    run(Assignment(Path(__file__).parent), arguments, __doc__ or "")
