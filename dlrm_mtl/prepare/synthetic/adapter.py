"""Synthetic data at any scale, whose best possible AUC is known for every task."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import (
    DATASET_FILE,
    DatasetSpec,
    DenseStatistics,
    FeatureSpec,
    LabelSpec,
    SplitSpec,
)
from dlrm_mtl.data.statistics import write_spec
from dlrm_mtl.prepare import ready
from dlrm_mtl.prepare.common.io import Progress, output_folder
from dlrm_mtl.prepare.synthetic.options import bags, per_task, split_rows, vocabulary_sizes
from dlrm_mtl.prepare.synthetic.truth import BLOCKS, Truth, WantedLabels, fit_truth, measure_block, summarise
from dlrm_mtl.prepare.synthetic.world import World
from dlrm_mtl.prepare.synthetic.write import ROW_GROUP_ROWS, OutputFile, Sums, in_processes, names, write_part

TRUTH_FILE = "truth.json"

DESCRIPTION = """\
Made by `dlrm-mtl prepare synthetic`. Ids are Zipf-distributed, id 1 being the most frequent; a label is 1 with probability \
sigmoid(its true logit), which is in the column logit_LABEL and is no feature. truth.json says how it is computed."""


@register("adapter", "synthetic")
def prepare(
    output: Path,
    *,
    rows: Annotated[int, typer.Option(min=1, help="Rows of all splits together.")] = 1_000_000,
    tables: Annotated[int, typer.Option(min=1, help="Sparse features; each has a table of its own.")] = 8,
    vocab: Annotated[
        str,
        typer.Option(
            help="Vocabulary sizes: 1000, or 1000..1000000 (spread evenly on a log scale), or 1000,50 (in turn)."
        ),
    ] = "100..10000",
    zipf: Annotated[float, typer.Option(min=0.0, help="Exponent of the ids' Zipf distribution; 0 is uniform.")] = 1.05,
    ids_per_bag: Annotated[
        str, typer.Option(help="Ids per row: 1, or 0..5 (uniform), or poisson:3, or 1,1,0..5 (tables in turn).")
    ] = "1",
    dense: Annotated[int, typer.Option(min=0, help="Dense features, standard normal.")] = 4,
    tasks: Annotated[int, typer.Option(min=1, max=64, help="Binary labels.")] = 3,
    correlation: Annotated[float, typer.Option(help="Correlation of the true logits of every two tasks.")] = 0.5,
    positive_rate: Annotated[str, typer.Option(help="Share of positives: 0.2, or 0.2,0.05 (tasks in turn).")] = "0.2",
    auc: Annotated[
        str, typer.Option(help="Bayes AUC, the highest there is: 0.8, or 0.8,0.75 (tasks in turn).")
    ] = "0.8",
    interactions: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the scores' variance from products of two tables' effects."),
    ] = 0.2,
    dense_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the scores' variance from the dense features.")
    ] = 0.2,
    splits: Annotated[
        str, typer.Option(help="Splits and their shares of the rows.")
    ] = "train=0.8,validation=0.1,test=0.1",
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Rows of a Parquet file, rounded up to whole row groups of 65,536.")
    ] = 4 * ROW_GROUP_ROWS,
    seed: Annotated[int, typer.Option(min=0, help="Determines every byte.")] = 1,
    processes: Annotated[int, typer.Option(min=0, help="Processes that write; 0: one per core. Changes no byte.")] = 0,
    progress: Progress = lambda what, done: None,
) -> str:
    """Synthetic rows at any scale: Zipf ids and tasks whose best possible AUC is known.

    Every process has one row group in memory. ``output`` gets the splits, dataset.yaml and truth.json, or nothing. Returns
    the text to print. Raises :class:`UserError` if options do not fit or ``output`` cannot be written.
    """
    processes = processes or len(os.sched_getaffinity(0))
    counts = split_rows(splits, rows)
    world = World(seed, vocabulary_sizes(vocab, tables), bags(ids_per_bag, tables), zipf, dense, tasks)
    wanted = WantedLabels(
        rates=per_task("--positive-rate", positive_rate, tasks, 0.0, 1.0),
        aucs=per_task("--auc", auc, tasks, 0.5, 0.999),
        correlation=_correlation(correlation, tasks),
        interactions=interactions if tables > 1 else 0.0,
        dense=dense_share if dense else 0.0,
    )
    if wanted.interactions + wanted.dense > 1:
        raise UserError(
            f"prepare synthetic: --interactions {interactions:g} and --dense-share {dense_share:g} are more than 1 together; "
            "lower one of them."
        )
    with output_folder(output) as folder:
        progress("solving for the true logits", 0.0)
        truth = fit_truth(world, wanted)
        blocks: dict[int, dict[str, Any]] = {}
        for block, measured in in_processes(measure_block, (world, truth), range(BLOCKS), processes):
            blocks[block] = measured
            progress("measuring Bayes AUCs", 0.1 * len(blocks) / BLOCKS)
        summary = summarise([blocks[block] for block in range(BLOCKS)], names(world)[2], wanted)
        parts = _parts(folder, counts, rows_per_file)
        sums: dict[int, Sums] = {}
        written = 0
        try:
            for position, result in in_processes(write_part, (world, truth), parts, processes):
                sums[position] = result
                written += result.rows
                progress(f"{written:,} of {rows:,} rows written", 0.1 + 0.9 * written / rows)
        except OSError as error:
            raise UserError(
                f"{output}: cannot be written ({error.strerror}); free space or name another folder."
            ) from None
        training = [sums[position] for position, part in enumerate(parts) if part.stream == list(counts).index("train")]
        write_spec(folder / DATASET_FILE, _specification(world, counts, training, summary))
        _write_truth(folder / TRUTH_FILE, world, wanted, truth, summary)
    lines = [
        f"{name}: Bayes AUC {entry['auc']:.4f} ± {entry['auc_standard_error']:.4f}, log loss {entry['log_loss']:.4f}, "
        f"positives {entry['rate']:.2%}"
        for name, entry in summary["tasks"].items()
    ]
    return "\n".join([*lines, f"{rows:,} rows", ready(output)])


def _correlation(value: float, tasks: int) -> float:
    lowest = -1.0 / (tasks - 1) if tasks > 1 else -1.0
    if not lowest <= value <= 1:
        raise UserError(
            f"prepare synthetic: --correlation {value:g}: {tasks} tasks can all have correlations from {lowest:.3g} to 1 with "
            "each other; name one of these."
        )
    return value


def _parts(folder: Path, counts: dict[str, int], rows_per_file: int) -> list[OutputFile]:
    """Files of all splits."""
    groups = -(-rows_per_file // ROW_GROUP_ROWS)
    parts = []
    for stream, (split, rows) in enumerate(counts.items()):
        (folder / split).mkdir()
        for number, start in enumerate(range(0, rows, groups * ROW_GROUP_ROWS)):
            path = folder / split / f"part-{number:05d}.parquet"
            parts.append(OutputFile(path, stream, number * groups, min(groups * ROW_GROUP_ROWS, rows - start)))
    return parts


def _specification(
    world: World, counts: dict[str, int], training: Sequence[Sums], summary: dict[str, Any]
) -> DatasetSpec:
    sparse, dense, tasks = names(world)
    rows = sum(part.rows for part in training)
    features = [
        FeatureSpec(name=name, kind="sparse", vocabulary_size=size)
        for name, size in zip(sparse, world.vocabularies, strict=True)
    ]
    for position, name in enumerate(dense):
        mean = sum(part.dense_sum[position] for part in training) / rows
        square = sum(part.dense_square[position] for part in training) / rows
        statistics = DenseStatistics(
            mean=_round(mean),
            std=_round(max(square - mean**2, 0.0) ** 0.5),
            min=_round(min(part.dense_min[position] for part in training)),
            max=_round(max(part.dense_max[position] for part in training)),
        )
        features.append(FeatureSpec(name=name, kind="dense", statistics=statistics))
    labels = []
    for position, name in enumerate(tasks):
        entry = summary["tasks"][name]
        text = (
            f"Bayes AUC {entry['auc']:.4f} (standard error {entry['auc_standard_error']:.4f}), Bayes log loss "
            f"{entry['log_loss']:.4f} ({entry['log_loss_standard_error']:.4f}), from {summary['rows']:,} other rows"
        )
        mean = sum(part.positives[position] for part in training) / rows
        labels.append(LabelSpec(name=name, description=text, mean=_round(mean)))
    return DatasetSpec(
        name="synthetic",
        description=DESCRIPTION,
        splits={name: SplitSpec(folder=name, rows=count) for name, count in counts.items()},
        features=features,
        labels=labels,
    )


def _write_truth(path: Path, world: World, wanted: WantedLabels, truth: Truth, summary: dict[str, Any]) -> None:
    content = {
        "bayes": summary,
        "wanted": {"correlation": wanted.correlation, "interactions": wanted.interactions, "dense": wanted.dense},
        "world": asdict(world),
        "truth": truth.as_json(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _round(value: float) -> float:
    return float(f"{value:.6g}")
