"""The page of ``dlrm-mtl compare`` and ``dlrm-mtl report``: one run, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

import dlrm_mtl
from dlrm_mtl.reports.comparison_notes import notes
from dlrm_mtl.reports.comparison_tables import (
    HEADLINES,
    SPLITS,
    difference_tables,
    metric_tables,
    paired_tables,
    runs_table,
)
from dlrm_mtl.reports.curve_sections import OTHERS, training_sections, validation_sections
from dlrm_mtl.reports.groups import Group
from dlrm_mtl.reports.page import Page, PageTable, Section
from dlrm_mtl.reports.plots import COLOURS
from dlrm_mtl.reports.run_sections import configuration_section, machine_section, phase_sections, plan_sections
from dlrm_mtl.reports.runs import RecordedRun, Skipped
from dlrm_mtl.reports.score_sections import intervals_over_rows, score_sections
from dlrm_mtl.reports.slice_section import slice_sections

ROWS = "Small: 95 % interval over the rows of the split, by bootstrap; of a real label by the normal approximation."
SEEDS = "±: half of the 95 % interval over seeds, by Student's t."


def comparison_page(runs: Sequence[RecordedRun], groups: Sequence[Group], skipped: Sequence[Skipped] = ()) -> Page:
    """Build the page for ``runs``, which ``groups`` holds by configuration; ``skipped`` names those left out."""
    colours = {group.label: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    by_run = {run.label: colours[group.label] for group in groups for run in (*group.runs, *group.repeated)}
    several = any(len(group.runs) > 1 for group in groups)
    found = difference_tables(groups)
    sections = [Section("Runs", tables=[_retitled(runs_table(runs, by_run), "")])]
    for split in SPLITS:
        sections += _metric_sections(runs, groups, split, several)
    sections += score_sections(groups, colours)
    sections += slice_sections(runs)
    if found:
        tables = [_retitled(table, "") for table in found]
        sections.append(Section("Where the configurations differ", tables=tables))
    elif len(groups) == 1:
        sections.append(configuration_section(groups[0].runs[0]))
    sections += validation_sections(groups, colours)
    sections += training_sections(groups, colours)
    sections += phase_sections(runs)
    sections += plan_sections(runs)
    sections.append(machine_section(runs))
    lines = "Thin lines are runs; thick ones the mean over seeds, from three seeds on with its 95 % interval."
    return Page(
        title=f"{len(runs)} runs compared" if len(runs) > 1 else runs[0].label,
        subtitle=lines if several else "",
        legend=[(colour, label) for label, colour in colours.items()],
        sections=sections,
        notes=notes(runs, groups, skipped),
        source=f"dlrm_mtl {dlrm_mtl.__version__}; seeds, machines and versions of the runs: see the last section.",
    )


def _metric_sections(runs: Sequence[RecordedRun], groups: Sequence[Group], split: str, several: bool) -> list[Section]:
    """Tables of the headlines, and of other metrics, folded."""
    title = SPLITS[split]
    intervals = intervals_over_rows(runs, split)
    sections = []
    for names, heading in ((HEADLINES, title), (OTHERS, f"{title}: other metrics")):
        tables = metric_tables(runs, groups, split, names, intervals) + paired_tables(groups, split, names)
        if tables:
            own = any(key.rpartition("/")[2] in names for _, key in intervals)
            text = " ".join(sentence for sentence, there in ((ROWS, own), (SEEDS, several)) if there)
            tables = [_retitled(table, table.caption.removeprefix(f"{title}: ")) for table in tables]
            folded = split == "validation" or names is OTHERS
            sections.append(Section(heading, text=text, tables=tables, folded=folded))
    return sections


def _retitled(table: PageTable, caption: str) -> PageTable:
    return PageTable(table.columns, table.rows, table.text_columns, caption)
