"""Bundle of a published version: a base with all deltas that follow it, the same bytes as the export of that step.

Tables may be rounded to another format. The float32 ones are first compared with the trained model on the golden rows; the
bundle then has the scores that it gives with the rounded ones, as an export has.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dlrm_mtl.checkpoint.format import DTYPES
from dlrm_mtl.config.load import know_all_parts
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.keyed_ids import PlainKeyedIds
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.models.input_sums import ROWS, Sums, input_sums
from dlrm_mtl.run.contract import in_full
from dlrm_mtl.serve.bundle import (
    DENSE_FILE,
    DIGESTS_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    TABLES_FILE,
    VALUES_FILE,
    ServedModel,
    new_bundle,
    write_file,
)
from dlrm_mtl.serve.description import describe_model
from dlrm_mtl.serve.follow.raw import published_raw
from dlrm_mtl.serve.follow.table_files import encode_tables, new_tensors
from dlrm_mtl.serve.golden import compare_scores, compare_sums, write_golden
from dlrm_mtl.serve.load import served_input, served_model
from dlrm_mtl.serve.pages import write_digests
from dlrm_mtl.serve.rows import Where
from dlrm_mtl.serve.scorer import Scorer, Scores, ServedBatch
from dlrm_mtl.serve.tables import check_format
from dlrm_mtl.serve.tensor_files import write_tensors
from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.storage.run_store import RunStore
from dlrm_mtl.tasks.targets import predictions
from dlrm_mtl.versions.content import VersionReader, read_delta
from dlrm_mtl.versions.format import GOLDEN_ROWS, GOLDEN_SCORES, StoredVersion, Version

logger = logging.getLogger(__name__)


def write_version(
    store: RunStore,
    versions: Sequence[StoredVersion],
    output: str | Path,
    plugins: Sequence[str] = (),
    format: FormatName = "fp32",
) -> str:
    """Write the bundle of the last of ``versions``; it is loaded before it appears. Tables are written in place, not held.

    Args:
        store: files of the versions.
        versions: a base, and the deltas that follow it.
        output: local folder to write.
        plugins: modules with parts of the model that the user trusts.
        format: format of the tables.

    Returns:
        The version of the bundle.

    Raises:
        UserError: a file of a version is missing or damaged, the output cannot be written, the format is unknown or cannot hold
            a value, or the golden rows do not get the scores that the trained model gave them.
    """
    check_format(format)
    base, last = versions[0], versions[-1]
    place = f"{store.place}/{last.name}"
    reader = VersionReader(store, base)
    reader.check_sizes()
    config, spec = _description(base.version, f"{store.place}/{base.name}", plugins)
    found: list[str] = []

    def check(folder: Path) -> None:
        found.append(Scorer(folder, plugins=plugins).version)

    with new_bundle(output, check) as folder:
        step = last.version.step
        names = sorted(name for name in reader.index.tensors if name.startswith(("tables.", "ids.")))
        stored_as = {name: reader.index.tensors[name] for name in names}
        kinds = {name: (DTYPES[each.dtype], each.shape) for name, each in stored_as.items()}
        tables = new_tensors(folder / TABLES_FILE, kinds, config.name, step)
        reader.fill(tables)
        dense, scores = reader.dense(), reader.read([GOLDEN_SCORES])[GOLDEN_SCORES]
        for stored in versions[1:]:
            delta = read_delta(store, stored)
            for kind, changes in (("tables", delta.tables), ("ids", delta.ids)):
                for name, changed in changes.items():
                    tables[f"{kind}.{name}"][changed.rows] = changed.values
            dense, scores = dict(delta.dense), delta.scores
        tables.clear()
        write_file(folder / DENSE_FILE, lambda file: write_tensors(file, dense, config.name, step))
        write_digests(folder / TABLES_FILE, folder / DIGESTS_FILE)
        rows = json.loads(reader.read([GOLDEN_ROWS])[GOLDEN_ROWS].numpy().tobytes())
        sizes = last.version.golden_batches
        scored, sums = golden_scores(folder, describe_model(config, spec, step, {}), rows, sizes)
        compare_sums(sums, last.version.golden_sums, place)
        wanted = {task.name: scores[:, number].numpy() for number, task in enumerate(config.tasks)}
        compare_scores(scored, wanted, place)
        if format != "fp32":
            encode_tables(folder / TABLES_FILE, format, config.name, step)
            write_digests(folder / TABLES_FILE, folder / DIGESTS_FILE)
            rounded = describe_model(config, spec, step, {}, tables=format)
            exact = scored
            scored, sums = golden_scores(folder, rounded, rows, sizes)
            largest = max(float(np.abs(scored[task] - exact[task]).max(initial=0.0)) for task in exact)
            logger.info("%s: %s tables change scores of the golden rows by up to %.2g", place, format, largest)
        raw = published_raw(reader, config, spec, f"{store.place}/{base.name}")
        write_golden(folder / GOLDEN_FILE, rows[:ROWS], scored, raw.golden(rows[:ROWS]) if raw is not None else [])
        if raw is not None:
            write_file(folder / VALUES_FILE, partial(write_tensors, tensors=raw.tensors, run=config.name, step=step))
        served = describe_model(config, spec, step, sums, raw.raw if raw is not None else None, format)
        write_whole(folder / MODEL_FILE, served.model_dump_json(indent=1) + "\n")
    logger.info("%s: %s of step %d, version %s", output, last.name, step, found[0])
    return found[0]


def _description(base: Version, place: str, plugins: Sequence[str]) -> tuple[RunConfig, DatasetSpec]:
    """Configuration of the run, with all feature names, and description of its data set."""
    load_plugins(plugins, "plugins")
    know_all_parts()
    contract = validate(Contract, base.contract or {}, f"{place}: contract")
    config = validate(RunConfig, base.config or {}, f"{place}: configuration")
    return in_full(config, contract), contract.dataset


@torch.inference_mode()
def golden_scores(
    folder: Path, served: ServedModel, rows: list[dict[str, object]], sizes: Sequence[int]
) -> tuple[Scores, Sums]:
    """Scores of the golden rows and sums of their input, computed as many rows at a time as the export does.

    Args:
        folder: folder of the bundle, with its tables, weights and changes.
        served: description of its model.
        rows: golden rows, and the others that are scored with them.
        sizes: numbers of rows to score at a time.
    """
    given = served_input(folder, served)
    model, _ = served_model(folder, served, given)
    encode = given.encoder().encode
    keys = [*served.data.sparse, *served.data.sequence]
    scores, features, dense = [], [], []
    start = 0
    for size in sizes:
        (joined,) = encode(rows[start : start + size], Where(f"{folder}: golden rows")).parts(size)
        vectors = model.lookup(model.ids(ServedBatch(PlainKeyedIds(keys, joined.values, joined.lengths, size), joined)))
        scores.append(predictions(model.logits_of(vectors, joined.dense), served.tasks))
        features.append(vectors)
        dense.append(joined.dense)
        start += size
    lookup = model.lookup
    sums = input_sums(
        torch.cat(features)[:ROWS], lookup.widths, lookup.names, torch.cat(dense)[:ROWS], served.data.dense
    )
    values = torch.cat(scores)[:ROWS].numpy().astype(np.float32)
    return {task.name: values[:, number] for number, task in enumerate(served.tasks)}, sums
