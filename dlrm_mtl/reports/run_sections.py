"""Sections of a page about how the runs ran: time per phase, sharding plan, configuration, machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlrm_mtl.console import ranks_text
from dlrm_mtl.reports.comparison_notes import listed
from dlrm_mtl.reports.page import Cell, PageTable, Section
from dlrm_mtl.reports.phase_names import PHASES
from dlrm_mtl.reports.run_files import numbers
from dlrm_mtl.reports.runs import RecordedRun

REST = "the rest"
MOST_TABLES = 25
"""Most tables that a plan shows one by one."""
MOST_PROCESSES = 64
"""Most processes whose memory a plan shows."""


def phase_sections(runs: Sequence[RecordedRun]) -> list[Section]:
    """Milliseconds of each phase of a training step, a column for each run that has logged them."""
    means = {run.label: phase_means(run) for run in runs}
    means = {label: phases for label, phases in means.items() if phases}
    if not means:
        text = "Not recorded: training.phase_times: true logs the time of each phase of a step."
        return [Section("Time per phase", text=text, folded=True)]
    there = {name for phases in means.values() for name in phases}
    names = [name for name in PHASES if name in there] + sorted(there - PHASES.keys() - {REST}) + [REST]
    totals = {label: sum(phases.values()) for label, phases in means.items()}
    most = max(max(phases.values()) for phases in means.values()) or 1.0
    rows: list[list[str | Cell]] = []
    for name in names:
        row: list[str | Cell] = [name, PHASES.get(name, "what belongs to no phase" if name == REST else "")]
        for label, phases in means.items():
            if name in phases:
                seconds = phases[name]
                share = f"{seconds / totals[label]:.0%}" if totals[label] else "-"
                row.append(Cell(f"{1000 * seconds:.3f}", bar=seconds / most, note=share))
            else:
                row.append("-")
        rows.append(row)
    rows.append(["whole step", "", *(Cell(f"{1000 * total:.3f}", strong=True) for total in totals.values())])
    text = "Milliseconds of a training step on the first process, mean over the run, and their share of the step."
    missing = [run.label for run in runs if run.label not in means]
    if missing:
        text += f" Not recorded, without training.phase_times: {listed(missing)}."
    return [Section("Time per phase", text=text, tables=[PageTable(("phase", "what happens", *means), rows, 2)])]


def phase_means(run: RecordedRun) -> dict[str, float]:
    """Mean seconds of each phase in a step, and :data:`REST`; empty if they were not logged."""
    entries = [entry for entry in run.entries if entry["kind"] == "train"]
    sums: dict[str, float] = {}
    steps, seconds, before = 0, 0.0, 0
    for entry in entries:
        count, before = entry["step"] - before, entry["step"]
        own = {key.partition("/")[2]: value for key, value in numbers(entry).items() if key.startswith("phase/")}
        whole = numbers(entry).get("seconds", math.nan)
        if not own or not math.isfinite(sum(own.values()) + whole):
            continue
        for name, value in own.items():
            sums[name] = sums.get(name, 0.0) + value * count
        steps, seconds = steps + count, seconds + whole
    if not steps:
        return {}
    written = {name.replace(" ", "_"): name for name in PHASES}
    means = {written.get(name, name.replace("_", " ")): total / steps for name, total in sums.items()}
    means[REST] = max(seconds / steps - sum(means.values()), 0.0)
    return means


def plan_sections(runs: Sequence[RecordedRun]) -> list[Section]:
    """The sharding plans; runs with the same plan share a table."""
    plans: dict[str, list[RecordedRun]] = {}
    for run in runs:
        if run.content.plan:
            plans.setdefault(json.dumps(run.content.plan, sort_keys=True), []).append(run)
    if not plans:
        return []
    tables: list[PageTable] = []
    for own in plans.values():
        who = "all runs" if len(own) == len(runs) else listed([run.label for run in own])
        try:
            tables += _plan_tables(own[0].content.plan, f"{who}: " if len(runs) > 1 else "")
        except (KeyError, TypeError, ValueError, IndexError):
            columns = ("plan of", "state")
            tables.append(PageTable(columns, [[who, "plan.json has another form, and is left out"]], text_columns=2))
    text = "Where each table is; MiB of the process that holds most of it."
    return [Section("Sharding plan", text=text, tables=tables, folded=True)]


def _plan_tables(plan: Sequence[Mapping[str, Any]], who: str) -> list[PageTable]:
    ordered = sorted(plan, key=lambda entry: -entry["mib"])
    most = ordered[0]["mib"] or 1.0
    rows: list[list[str | Cell]] = []
    for entry in ordered[:MOST_TABLES]:
        ranks = "all" if entry["ranks"] == "all" else ranks_text(entry["ranks"])
        row: list[str | Cell] = [entry["table"], entry["type"], ranks, f"{entry['rows']:,}", str(entry["dim"])]
        row += [str(len(entry["shards"]) or 1), Cell(f"{max(entry['weights_mib']):,.2f}", bar=entry["mib"] / most)]
        rows.append([*row, f"{max(entry['state_mib']):,.2f}"])
    rest = ordered[MOST_TABLES:]
    caption = f"{who}{len(plan)} tables"
    if rest:
        caption += f", the {MOST_TABLES} largest; {sum(entry['rows'] for entry in rest):,} rows in the others"
    columns = ("table", "sharding", "processes", "rows", "dim", "shards", "weights", "state")
    tables = [PageTable(columns, rows, text_columns=3, caption=caption)]
    weights, state = (np.array([entry[key] for entry in plan], np.float64).sum(axis=0) for key in _SIZES)  # [processes]
    if 1 < len(weights) <= MOST_PROCESSES:
        largest = float((weights + state).max()) or 1.0
        held: list[list[str | Cell]] = [
            [str(rank), Cell(f"{own + more:,.2f}", bar=(own + more) / largest), f"{own:,.2f}", f"{more:,.2f}"]
            for rank, (own, more) in enumerate(zip(weights, state, strict=True))
        ]
        tables.append(
            PageTable(("process", "MiB", "weights", "state"), held, caption=f"{who}memory of tables by process")
        )
    return tables


_SIZES = ("weights_mib", "state_mib")


def configuration_section(run: RecordedRun) -> Section:
    """Every key of a run's configuration."""
    rows = [[key, str(value)] for key, value in run.config.items()]
    return Section("Configuration", tables=[PageTable(("key", "value"), rows, text_columns=2)], folded=True)


def machine_section(runs: Sequence[RecordedRun]) -> Section:
    """Starts of the runs: when, with which versions, on how many processes and which machine."""
    rows: list[list[str | Cell]] = []
    for run in runs:
        for entry in run.content.history:
            if entry.get("event") in ("start", "resume"):
                time = str(entry.get("time", "-")).removesuffix("+00:00").replace("T", " ")
                about = ("event", "step", "processes", "processor", "device", "version", "torch", "host")
                rows.append([run.label, time, *(str(entry.get(key, "-")) for key in about)])
    columns = ("run", "UTC", "event", "step", "processes", "processor", "device", "dlrm_mtl", "torch", "host")
    text = "" if rows else "Not recorded: these runs are of an earlier version."
    tables = [PageTable(columns, rows, text_columns=len(columns))] if rows else []
    return Section("Machines and versions", text=text, tables=tables, folded=True)
