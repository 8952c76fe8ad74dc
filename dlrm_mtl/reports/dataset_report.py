"""``dlrm-mtl data describe``: a data set's profile in the terminal and as a page."""

from __future__ import annotations

import math
from pathlib import Path

from dlrm_mtl.console import Bar, console
from dlrm_mtl.reports.dataset_profile import QUANTILES, DatasetProfile, profile_dataset
from dlrm_mtl.reports.page import Cell, Figure, Page, PageTable, Section
from dlrm_mtl.reports.terminal import rich_table

FEWEST_FOR_A_CURVE = 20
"""Smallest number of distinct ids for a concentration curve."""


def describe_dataset(path: str | Path, html: Path | None = None, split: str | None = None, memory: str = "2GB") -> None:
    """Print the profile of the data set in the folder ``path``, and write it as a page.

    Raises:
        UserError: the data set is missing or damaged, an option does not fit, or the page cannot be written.
    """
    with Bar("describe", 100, shown=True) as bar:
        profile = profile_dataset(path, split, memory, lambda what, done: bar.update(round(100 * done), what))
    out = console()
    for table in (
        splits_table(profile),
        labels_table(profile),
        leaks_table(profile),
        ids_table(profile, brief=True),
        numbers_table(profile, brief=True),
    ):
        if table.rows:
            out.print(rich_table(table))
    if html is not None:
        dataset_page(profile).write(html)
        out.print(f"{html}: written; open it in a browser")


def splits_table(profile: DatasetProfile) -> PageTable:
    """Table of the rows, files, sizes and times of every split."""
    times = list(dict.fromkeys(column for split in profile.splits for column in split.times))
    rows = []
    for split in profile.splits:
        ranges = [" to ".join(dict.fromkeys(split.times[column])) if column in split.times else "-" for column in times]
        size = f"{split.bytes / 2**20:,.1f}"
        per_row = f"{split.bytes / split.rows:,.1f}"
        rows.append(
            [split.name, f"{split.rows:,}", f"{split.files:,}", f"{split.row_groups:,}", size, per_row, *ranges]
        )
    columns = ("split", "rows", "files", "row groups", "MiB", "bytes per row", *times)
    return PageTable(columns, rows, caption="Splits")


def labels_table(profile: DatasetProfile) -> PageTable:
    """Table of the means and nulls of every label in every split."""
    names = [split.name for split in profile.splits]
    rows = []
    for entry in profile.labels:
        binary = entry.label.kind == "binary"
        means = [share(entry.means[name]) if binary else number(entry.means[name]) for name in names]
        nulls = [share(entry.nulls[name]) for name in names]
        rows.append([entry.label.name, entry.label.kind, *means, *nulls])
    columns = ("label", "kind", *(f"mean {name}" for name in names), *(f"null {name}" for name in names))
    return PageTable(columns, rows, text_columns=2, caption="Labels: share of positives (binary) or mean (real)")


def leaks_table(profile: DatasetProfile) -> PageTable:
    """Table of features that may leak a label; no rows if nothing is suspicious."""
    rows = [[leak.column, leak.text] for leak in profile.leaks]
    caption = "These features may know the answer: leave out what is not known before the event"
    return PageTable(("feature", "in the training rows"), rows, text_columns=2, caption=caption)


def ids_table(profile: DatasetProfile, brief: bool = False) -> PageTable:
    """Table of sparse and sequence features; ``brief`` omits columns that do not fit into a terminal."""
    others = [split.name for split in profile.splits if split.name != profile.split]
    columns = [
        "feature",
        "kind",
        "vocabulary",
        "distinct",
        "coverage",
        "null",
        "unknown",
        "ids/row",
        "longest",
        "outside",
    ]
    columns += [*(f"unseen {name}" for name in others), "most frequent ids", "top id", "its share"]
    rows: list[list[str | Cell]] = []
    for entry in profile.ids:
        top = [f"{entry.top[0][0]}", share(entry.top[0][1])] if entry.top else ["-", "-"]
        rows.append(
            [
                entry.feature.name,
                entry.feature.kind,
                "any" if entry.vocabulary_size is None else f"{entry.vocabulary_size:,}",
                f"{entry.distinct:,}",
                Cell(share(entry.coverage), bar=_finite(entry.coverage)),
                Cell(share(entry.nulls), bar=_finite(entry.nulls)),
                share(entry.unknown),
                f"{entry.mean_length:.2f}",
                f"{entry.longest:,}",
                Cell(f"{entry.outside:,}", strong=entry.outside > 0),
                *(share(entry.unseen[name]) for name in others),
                ", ".join(f"{id_}: {share(part)}" for id_, part in entry.top),
                *top,
            ]
        )
    left_out = ("kind", "unknown", "longest", "most frequent ids") if brief else ("top id", "its share")
    kept = [place for place, column in enumerate(columns) if column not in left_out]
    return PageTable(
        columns=[columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in rows],
        text_columns=1 if brief else 2,
        caption=f"Sparse and sequence features, split {profile.split}",
    )


def numbers_table(profile: DatasetProfile, brief: bool = False) -> PageTable:
    """Table of dense features; ``brief`` omits columns that do not fit into a terminal."""
    levels = [place for place, level in enumerate(QUANTILES) if not brief or level in (0.05, 0.5, 0.95)]
    rows: list[list[str | Cell]] = []
    for entry in profile.numbers:
        numbers = (entry.mean, entry.std, entry.low, *(entry.quantiles[place] for place in levels), entry.high)
        shares = [Cell(share(value), bar=_finite(value)) for value in (entry.nulls, entry.zeros)]
        broken = Cell(f"{entry.not_finite:,}", strong=entry.not_finite > 0)
        rows.append([entry.feature.name, *shares, broken, *(number(value) for value in numbers)])
    quantiles = [f"{100 * QUANTILES[place]:g} %" for place in levels]
    columns = ("feature", "null", "zero", "not finite", "mean", "std", "min", *quantiles, "max")
    return PageTable(columns, rows, caption=f"Dense features, split {profile.split}")


def dataset_page(profile: DatasetProfile) -> Page:
    """Build the page: tables, suspicious features, label rates by split, concentration curves of ids, and histograms."""
    from dlrm_mtl.reports.plots import COLOURS, Line, grouped_bars, histogram_plot, line_plot  # slow to import

    spec = profile.spec
    names = [split.name for split in profile.splits]
    page = Page(title=f"Data set {spec.name}", subtitle=spec.description)
    page.sections.append(Section("Splits", tables=[_untitled(splits_table(profile))]))
    binary = [entry for entry in profile.labels if entry.label.kind == "binary"]
    if profile.labels:
        figures = []
        if binary:
            rates = {name: [100 * entry.means[name] for entry in binary] for name in names}
            labels = [entry.label.name for entry in binary]
            figures.append(
                Figure(
                    grouped_bars("Positives", labels, rates, "% of the rows"),
                    "Share of positives by label and split",
                    wide=True,
                )
            )
        text = "Share of positives of a binary label, mean of a real one; rows where it is null do not count."
        page.sections.append(Section("Labels", text, [_untitled(labels_table(profile))], figures))
    if profile.leaks:
        text = (
            "What is known only after the event, such as the time that was spent after a click, makes metrics look good and a "
            "model useless. Leave such features out, by data.sparse, data.sequence and data.dense of a run."
        )
        page.sections.append(Section("Features that may know the answer", text, [_untitled(leaks_table(profile))]))
    if profile.ids:
        text = (
            f"Over the split {profile.split}. Coverage: rows with an id other than 0. Unknown: share of id 0. Outside: ids "
            "beyond the vocabulary. Unseen: share of another split's ids that are 0 or do not occur here. Curves: the share of "
            "all occurrences that the k most frequent ids have."
        )
        curves = []
        for ids in profile.ids:
            line = Line(ids.curve[0], 100 * ids.curve[1], COLOURS[0])
            if ids.distinct >= FEWEST_FOR_A_CURVE:
                svg = line_plot(
                    f"{ids.feature.name}: % of all", [line], "k most frequent ids", logarithmic_x=True, from_zero=True
                )
                curves.append(Figure(svg, f"Concentration of the ids of {ids.feature.name}"))
        page.sections.append(Section("Sparse and sequence features", text, [_untitled(ids_table(profile))], curves))
    if profile.numbers:
        text = f"Over the split {profile.split}. Quantiles are approximate; histograms go from the 1 % to the 99 % quantile."
        histograms = [
            Figure(histogram_plot(entry.feature.name, entry.edges, entry.counts), f"Histogram of {entry.feature.name}")
            for entry in profile.numbers
            if entry.counts.any()
        ]
        page.sections.append(Section("Dense features", text, [_untitled(numbers_table(profile))], histograms))
    texts = {entry.name: entry.description for entry in spec.features} | {
        entry.name: entry.description for entry in spec.labels
    }
    described = [[name, text] for name, text in texts.items() if text]
    if described:
        page.sections.append(
            Section("What they are", tables=[PageTable(("column", "description"), described, 2)], folded=True)
        )
    if spec.licence or spec.citation:
        rows = [[key, text] for key, text in (("licence", spec.licence), ("citation", spec.citation)) if text]
        page.sections.append(Section("Licence and citation", tables=[PageTable(("", ""), rows, 2)], folded=True))
    return page


def share(value: float) -> str:
    """A fraction as a percentage: 100%, 44.2%, 0.078%; - for nan."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.3g}%" if 100 * value < 99.95 or value == 1 else "99.9%"


def number(value: float) -> str:
    """A number with four significant digits; - for nan."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _untitled(table: PageTable) -> PageTable:
    return PageTable(table.columns, table.rows, table.text_columns)
