"""Results of the study: tables in Markdown, and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dlrm_mtl.reports.groups import mean_and_interval
from dlrm_mtl.reports.plots import COLOURS
from studies.plots import drawing
from studies.taobao_balancing.runs import GRADIENTS, METHODS, WATCHED

METRICS = ("ndcg@10", "recall@10", "precision@10", "ndcg@20", "recall@20", "precision@20")
SWEEP = {0.0: "vanilla", 0.3: "metabalance_0.3", 0.5: "metabalance_0.5", 0.7: "metabalance_0.7", 1.0: "metabalance_1"}
COMPARED = ("metabalance_0.5", "surgery", "metabalance_surgery", "metabalance_pcgrad")
"""The thesis's Table 3, except vanilla."""
OTHERS = ("single", "vanilla_unknown")

CLAIMED = {
    "vanilla": (1.0407, 1.7377, 0.3732, 1.4109, 2.9271, 0.3258),
    "metabalance_0.5": (1.2844, 2.1099, 0.4408, 1.6899, 3.4426, 0.3657),
    "surgery": (1.0662, 1.7585, 0.3884, 1.4355, 2.9739, 0.3243),
    "metabalance_surgery": (1.0331, 1.6737, 0.3642, 1.3568, 2.7219, 0.3001),
    "metabalance_pcgrad": (1.0825, 1.8438, 0.3843, 1.3862, 2.8362, 0.3031),
}
"""The thesis's Table 3, in per cent: without intervals, on its own selection of users and items."""
CLAIMED_SWEEP = {0.0: 1.0486, 0.3: 0.9479, 0.5: 1.0431, 0.7: 1.0049, 1.0: 0.9955}
"""NDCG@10 of its Table 2, on validation purchases."""

Results = Sequence[dict[str, Any]]


def values(results: Results, method: str, split: str, metric: str) -> list[float]:
    """A metric in per cent, in the order of seeds."""
    own = sorted((result for result in results if result["method"] == method), key=lambda result: result["seed"])
    return [100 * result[split][metric] for result in own]


def change(results: Results, method: str, split: str, metric: str) -> tuple[float, float]:
    """Change of a method against vanilla, in per cent: mean over seeds, and half the width of its 95 % interval."""
    pairs = zip(values(results, method, split, metric), values(results, "vanilla", split, metric), strict=True)
    return mean_and_interval([100 * (own / base - 1) if base else float("nan") for own, base in pairs])


def tables(tuning: dict[float, list[float]], results: Results) -> str:
    """All tables, as Markdown."""
    heads = [name.replace("ndcg", "NDCG").replace("recall", "R").replace("precision", "P") for name in METRICS]
    rates = [[f"{rate:g}", " ".join(f"{100 * value:.2f}" for value in found)] for rate, found in tuning.items()]
    parts = [
        ("Learning rate: vanilla's validation NDCG@10 (%), by tuning seed", ["rate", "NDCG@10"], rates),
        ("Test purchases (%)", ["method", *heads], _rows(results, list(METHODS), "test")),
        ("Test purchases, change against vanilla, seed by seed (%)", ["method", *heads], _changes(results)),
        ("Relax factor, validation purchases (%)", ["r", *heads], _rows(results, list(SWEEP.values()), "validation")),
        (
            "Gradients of shared parameters, means over all steps",
            ["method", "best epochs", *GRADIENTS],
            [_gradients(results, method) for method in METHODS],
        ),
    ]
    return "\n".join(_table(*part) for part in parts)


def _rows(results: Results, methods: Sequence[str], split: str) -> list[list[str]]:
    return [
        [METHODS[method].title, *(_pair(*mean_and_interval(values(results, method, split, name))) for name in METRICS)]
        for method in methods
    ]


def _changes(results: Results) -> list[list[str]]:
    rows = []
    for method in METHODS:
        if method != "vanilla":
            found = [change(results, method, "test", name) for name in METRICS]
            rows.append([METHODS[method].title, *(f"{mean:+.1f} ± {half:.1f}" for mean, half in found)])
    return rows


def _gradients(results: Results, method: str) -> list[str]:
    own = [result for result in results if result["method"] == method]
    cells = []
    for name in GRADIENTS:
        found = [result["gradients"][name] for result in own if result["gradients"]]
        cells.append(f"{statistics.fmean(found):.3g}" if found else "")
    return [METHODS[method].title, " ".join(str(result["best_epoch"]) for result in own), *cells]


def _pair(mean: float, half: float) -> str:
    return f"{mean:.2f} ± {half:.2f}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"\n{title}\n", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def plot(results: Results) -> str:
    """Changes against vanilla, and the sweep, each beside the figures of the thesis, as SVG."""
    with drawing(9.4, 3.4) as (figure, svg):
        left, right = figure.subplots(1, 2, width_ratios=(4, 3))
        for place, method in enumerate([*COMPARED, *OTHERS]):
            mean, half = change(results, method, "test", WATCHED)
            left.errorbar(mean, place, xerr=half, fmt="o", color=COLOURS[0], markersize=4, label="here, 95 %")
            if method in CLAIMED:
                claimed = 100 * (CLAIMED[method][0] / CLAIMED["vanilla"][0] - 1)
                left.plot(claimed, place, "D", color=COLOURS[1], markerfacecolor="none", label="thesis")
        left.set_yticks(range(len(COMPARED) + len(OTHERS)), [METHODS[method].title for method in [*COMPARED, *OTHERS]])
        left.invert_yaxis()
        left.axvline(0, color="#8c959f", linewidth=1)
        left.grid(visible=False, axis="y")
        left.set_title("Test: NDCG@10 against vanilla (%)")
        changes = [change(results, method, "validation", WATCHED) for method in SWEEP.values()]
        right.errorbar(
            list(SWEEP),
            [mean for mean, _ in changes],
            [half for _, half in changes],
            fmt="o-",
            color=COLOURS[0],
            markersize=4,
        )
        base = CLAIMED_SWEEP[0.0]
        right.plot(
            list(SWEEP),
            [100 * (CLAIMED_SWEEP[r] / base - 1) for r in SWEEP],
            "D--",
            color=COLOURS[1],
            markerfacecolor="none",
        )
        right.axhline(0, color="#8c959f", linewidth=1)
        right.set_xlabel("relax factor r of MetaBalance")
        right.set_title("Validation: the same, by r (%)")
        handles, labels = left.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2, frameon=False)
        return svg()
