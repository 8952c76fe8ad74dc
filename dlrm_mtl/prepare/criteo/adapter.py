"""Criteo click logs: display ads, one row per impression in the order of time, with 13 counts and 26 hashed categories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec
from dlrm_mtl.prepare.common.duck import Memory, Threads
from dlrm_mtl.prepare.common.examples import Examples, write_examples
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.prepare.common.preparation import (
    preparing,
    require_training,
    sparse_features,
    splits_in_folders,
)
from dlrm_mtl.prepare.common.vocabularies import Categorical, HashSize, MinCount, Numbering
from dlrm_mtl.prepare.criteo.files import CATEGORIES, COUNTS, load_indexed, load_raw

LICENCE = "Criteo's terms for the data set, research and non-commercial use; see https://ailab.criteo.com"
CITATION = """\
Criteo Display Advertising Challenge, Kaggle 2014, https://www.kaggle.com/c/criteo-display-ad-challenge; Criteo 1TB Click \
Logs, Criteo AI Lab, https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset/"""
INDEXED_CITATION = """\
Wei Deng, Junwei Pan, Tian Zhou, Deguang Kong, Aaron Flores, Guang Lin. DeepLight: Deep Lightweight Feature Interactions for \
Accelerating CTR Predictions in Ad Serving. WSDM 2021. https://doi.org/10.1145/3437963.3441727"""


@register("adapter", "criteo")
def prepare(
    input: Path,
    output: Path,
    *,
    layout: Annotated[
        Literal["raw", "indexed"], typer.Option(help="`raw`: Criteo's files; `indexed`: DeepLight's small set.")
    ] = "raw",
    files: Annotated[
        str | None,
        typer.Option(help="Pattern of the raw files' names; default: train.txt, or else day_*.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["shares", "last-day"],
        typer.Option(
            help="`shares`: the last rows, in the order of files, are validation, then test; `last-day`: the first half "
            "of the last file is validation, the second test."
        ),
    ] = "shares",
    validation_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows.")] = 1 / 14,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows (raw).")] = 1 / 14,
    min_count: MinCount = 2,
    hash_size: HashSize = None,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """Criteo click logs (Kaggle 2014, terabyte): clicks on display ads.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    require_training("criteo", validation_share=validation_share, test_share=test_share)
    if layout == "indexed" and (split == "last-day" or files is not None):
        raise UserError("prepare criteo: --split last-day and --files are for --layout raw; leave them out.")
    numbering = Numbering(min_count, hash_size)
    with preparing(output, progress, memory, threads) as preparation:
        progress("reading", 0.0)
        if layout == "raw":
            splits = load_raw(preparation.connection, input, files, split, validation_share, test_share)
        else:
            splits = load_indexed(preparation.connection, input, validation_share)
        examples = Examples(splits, *_columns(layout))
        sizes = write_examples(preparation, examples, numbering, begin=0.3, remedy="raise its share")
        preparation.describe(_specification(layout, sizes, numbering), 0.9)


def _columns(layout: str) -> tuple[dict[str, tuple[str, pa.DataType]], list[Categorical]]:
    """Columns that are not ids, and the categorical columns."""
    others: dict[str, tuple[str, pa.DataType]] = {"click": ("click", pa.int8())}
    if layout == "indexed":
        return others, [Categorical(name, name) for name in (*COUNTS, *CATEGORIES)]
    others |= {f"{name}_log": (f"sign({name}) * ln(1 + abs({name}))", pa.float32()) for name in COUNTS}
    return others, [Categorical(name, name, "format('{{:08x}}', {})".format) for name in CATEGORIES]


def _specification(layout: str, sizes: dict[str, int], numbering: Numbering) -> DatasetSpec:
    ids = f"ids by frequency in training, from {numbering.min_count} times on"
    logs = [
        FeatureSpec(name=f"{name}_log", kind="dense", description=f"sign(x) ln(1 + abs(x)) of {name}")
        for name in COUNTS
    ]
    raw = layout == "raw"
    source = "Criteo click logs" if raw else "Criteo click logs, 20,000 rows indexed by the DeepLight code"
    return DatasetSpec(
        name="criteo",
        description=f"{source}: impressions in the order of the files; "
        f"{ids if numbering.hash_size is None else 'hashed ids'}; empty fields are null.",
        licence=LICENCE,
        citation=CITATION if raw else f"{CITATION}. Indexed sample: {INDEXED_CITATION}",
        splits=splits_in_folders(),
        features=sparse_features(sizes, list(sizes)) + (logs if raw else []),
        labels=[LabelSpec(name="click")],
    )
