"""Ali-CCP: impressions of Taobao's recommender with clicks and conversions, joined out of core with the users' features.

The common features become ids once and are stored in files; the impressions, many for each, stream by in their order and
look theirs up. A conversion is null without a click, since it is impossible there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import duckdb
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec
from dlrm_mtl.prepare.aliccp.files import COMMON, OWN, load, longest
from dlrm_mtl.prepare.aliccp.impressions import write_impressions
from dlrm_mtl.prepare.common.duck import Memory, Threads, one_row
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.prepare.common.preparation import (
    comma_separated,
    preparing,
    require_training,
    splits_in_folders,
)
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.common.vocabularies import Categorical, MinCount, Numbering, Vocabularies

LICENCE = "published by Alibaba for research; see https://tianchi.aliyun.com/dataset/408"
CITATION = """\
Xiao Ma, Liqin Zhao, Guan Huang, Zhi Wang, Zelin Hu, Xiaoqiang Zhu, Kun Gai. Entire Space Multi-Task Model: An Effective \
Approach for Estimating Post-Click Conversion Rate. SIGIR 2018. https://doi.org/10.1145/3209978.3210104"""


@register("adapter", "aliccp")
def prepare(
    input: Path,
    output: Path,
    *,
    fields: Annotated[
        str, typer.Option(help="Feature fields to keep, comma separated, such as 101,205,206; default: all.")
    ] = "",
    max_list: Annotated[
        int, typer.Option(min=1, help="Ids kept of a field with several, the first ones of the file.")
    ] = 20,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the training file's impressions, drawn by seed.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the validation impressions.")] = 0,
    min_count: MinCount = 2,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """Ali-CCP: clicks, and conversions after clicks, on impressions of Taobao's recommender.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    require_training("aliccp", validation_share=validation_share)
    fields_kept = _fields(fields)
    own, common = ([name for name in group if name in fields_kept] for group in (OWN, COMMON))
    with preparing(output, progress, memory, threads) as preparation:
        connection = preparation.connection
        for position, part in enumerate(("train", "test")):
            progress(f"reading {part}", 0.3 * position)
            load(connection, input, part, own, common, max_list)
        many = {name for name in fields_kept if longest(connection, name, name in OWN) > 1}
        shares = {"1": validation_share, "0": 1 - validation_share}
        held = f"{random_split('CAST(sample AS VARCHAR)', shares, seed=seed)} = '1'"
        conditions = {"train": f"NOT ({held})", "validation": held, "test": "true"}
        vocabularies = Vocabularies(connection, Numbering(min_count))
        for position, name in enumerate(fields_kept):
            progress("numbering", 0.6 + 0.1 * position / len(fields_kept))
            rows = ("skeleton_train", conditions["train"]) if name in OWN else ("common_train", "true")
            vocabularies.add(Categorical(name, f'"{name}"', many=True), *rows)
        missing = write_impressions(preparation, vocabularies, conditions, own, common, many)
        notes = _notes(connection, missing, max_list, min_count)
        preparation.describe(_specification(vocabularies.sizes, seed, notes), 0.95)


def _fields(text: str) -> list[str]:
    everything = [*OWN, *COMMON]
    names = comma_separated(text)
    for name in names:
        if name not in everything:
            raise UserError(f"prepare aliccp: there is no field {name!r}; {suggest(name, everything)}.")
    return [name for name in everything if not names or name in names]


def _notes(connection: duckdb.DuckDBPyConnection, missing: int, max_list: int, min_count: int) -> str:
    (strange,) = one_row(
        connection,
        "SELECT sum(strange) FROM (SELECT strange FROM skeleton_train UNION ALL SELECT strange FROM skeleton_test)",
    )
    notes = [f"ids by frequency in training, from {min_count} times on", f"lists keep their first {max_list} ids"]
    if strange:
        notes.append(f"{strange:,} impressions had a conversion without a click, which is left out")
    if missing:
        notes.append(f"{missing:,} impressions have no common features")
    return "; ".join(notes)


def _specification(sizes: dict[str, int], seed: int, notes: str) -> DatasetSpec:
    texts = {
        "train": "the published training impressions without validation rows",
        "validation": f"random published training impressions (seed {seed})",
        "test": "the published test impressions",
    }
    return DatasetSpec(
        name="aliccp",
        description=f"Ali-CCP impressions in the order of the files; {notes}.",
        licence=LICENCE,
        citation=CITATION,
        splits=splits_in_folders(texts),
        features=[FeatureSpec(name=f"field_{name}", kind="sparse", vocabulary_size=n) for name, n in sizes.items()],
        labels=[LabelSpec(name="click"), LabelSpec(name="conversion", description="null where there was no click")],
    )
