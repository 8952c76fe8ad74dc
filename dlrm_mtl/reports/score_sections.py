"""Sections of a page about scores: calibration, ROC and precision-recall curves; and intervals over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlrm_mtl.reports.comparison_notes import listed
from dlrm_mtl.reports.curve_plots import ScoredRun, precision_recall_plot, reliability_plot, roc_plot
from dlrm_mtl.reports.groups import Group
from dlrm_mtl.reports.page import Figure, Section
from dlrm_mtl.reports.row_intervals import Interval, row_intervals
from dlrm_mtl.reports.runs import RecordedRun
from dlrm_mtl.reports.score_curves import has_both_classes

MOST_RUNS = 12
"""Most runs in a plot; of more, the first ones are drawn."""


def intervals_over_rows(runs: Sequence[RecordedRun], split: str) -> dict[tuple[str, str], Interval]:
    """95 % intervals by the label of a run and ``TASK/METRIC``, of the runs that have kept their scores."""
    found = {}
    for run in runs:
        metrics = run.metrics(split)
        for task, bins in run.scores(split).items():
            own = {key.rpartition("/")[2]: value for key, value in metrics.items() if key.rpartition("/")[0] == task}
            found.update({(run.label, f"{task}/{name}"): ends for name, ends in row_intervals(bins, own).items()})
    return found


def score_sections(groups: Sequence[Group], colours: Mapping[str, str]) -> list[Section]:
    """Calibration, ROC and precision-recall, on the test split; on the validation split for runs without a test split."""
    runs = [run for group in groups for run in group.runs]
    split = "test" if any(run.scores("test") for run in runs) else "validation"
    scored = [run for run in runs if run.scores(split)]
    if not scored:
        text = "None of these runs has kept its scores: runs of earlier versions and unfinished ones have none."
        return [Section("Calibration, ROC and precision-recall", text=text)] if runs else []
    where = f"{split} split, model of the {'evaluated checkpoint' if split == 'test' else 'best step so far'}."
    missing = [run.label for run in runs if run not in scored]
    if missing:
        where += f" Without scores, of an earlier version or unfinished: {listed(missing)}."
    if len(scored) > MOST_RUNS:
        where += f" The first {MOST_RUNS} of {len(scored)} runs."
        scored = scored[:MOST_RUNS]
    colour_of = {run.label: colours[group.label] for group in groups for run in group.runs}
    several = {run.label: len(group.runs) > 1 for group in groups for run in group.runs}
    calibration, roc, precision = [], [], []
    for task in dict.fromkeys(task for run in scored for task in run.scores(split)):
        lines = [
            ScoredRun(bins, colour_of[run.label], 0.7 if several[run.label] else 1.0)
            for run in scored
            if (bins := run.scores(split).get(task)) is not None and len(bins.rows)
        ]
        if lines and lines[0].bins.kind != "ranking":
            calibration.append(Figure(reliability_plot(task, lines), f"calibration of {task}"))
        both = [line for line in lines if has_both_classes(line.bins)]
        if both:
            roc.append(Figure(roc_plot(task, both), f"ROC curve of {task}"))
            precision.append(Figure(precision_recall_plot(task, both), f"precision-recall curve of {task}"))
    sections = []
    if calibration:
        text = (
            f"Mean label by mean prediction, for groups of about equally many rows; on the dashed line they are equal. "
            f"Outlines: rows by prediction. Up to three runs have 95 % intervals (Wilson). {where[0].upper()}{where[1:]}"
        )
        sections.append(Section("Calibration", text=text, figures=calibration))
    if roc:
        sections.append(Section("ROC curves", text=f"{where[0].upper()}{where[1:]}", figures=roc))
        text = f"Dashed: share of positives. {where[0].upper()}{where[1:]}"
        sections.append(Section("Precision-recall curves", text=text, figures=precision))
    return sections
