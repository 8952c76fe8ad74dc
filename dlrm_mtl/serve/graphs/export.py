"""Export of a bundle's model as a graph, which is compared with the golden rows before it gets its name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram

from dlrm_mtl import __version__
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.join_rows import Joined
from dlrm_mtl.serve.bundle import GOLDEN_FILE, ServedModel, check_bundle, read_model
from dlrm_mtl.serve.calibration import BundleCalibration, read_calibration
from dlrm_mtl.serve.golden import read_golden
from dlrm_mtl.serve.graphs.formats import FORMATS, Run, quiet
from dlrm_mtl.serve.graphs.inputs import DENSE, Arrays, arrays_of, ids_of
from dlrm_mtl.serve.graphs.module import ServingGraph
from dlrm_mtl.serve.load import ServedInput, served_input, served_model
from dlrm_mtl.serve.rows import Where
from dlrm_mtl.storage.output import sync_folder

TOLERANCE = 1e-6
"""Largest difference of a prediction from that of the trained model, absolute up to 1 and relative beyond."""

logger = logging.getLogger(__name__)


def export_graph(bundle: str | Path, output: str | Path, format: str = "torch", plugins: Sequence[str] = ()) -> float:
    """Write the model of a bundle as one graph from encoded rows to predictions.

    Args:
        bundle: folder of the bundle, with tables in float32.
        output: local file to write; it appears when its golden rows got their scores.
        format: ``torch`` (a program of torch.export), ``aoti`` (a package of AOTInductor) or ``onnx``.
        plugins: modules that register parts of the model; they are imported, which runs them.

    Returns:
        Largest difference from the bundle's scores on the golden rows.

    Raises:
        UserError: the bundle or the output cannot be used, something that the format needs is missing, or golden rows get
            other scores.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: there is no such format; {suggest(format, FORMATS)}.")
    chosen = FORMATS[format]
    target = _target(output, chosen.ending)
    chosen.require()
    folder = Path(bundle)
    version = check_bundle(folder)
    served = read_model(folder, list(plugins))
    if served.tables != "fp32":
        raise UserError(
            f"{bundle}: its tables are {served.tables}, and a graph has float32; export the run with fp32 tables."
        )
    given = served_input(folder, served)
    rows, wanted = read_golden(folder / GOLDEN_FILE)
    (joined,) = given.encoder().encode(rows, Where(str(folder / GOLDEN_FILE))).parts(len(rows))
    arrays = arrays_of(
        joined, given.selection.keys, [each.name for each in given.selection.dense], given.selection.constants
    )
    calibration = read_calibration(folder)
    metadata = {
        "name": served.name,
        "step": served.step,
        "bundle": version,
        "dlrm_mtl": __version__,
        "inputs": {name: str(array.dtype) for name, array in arrays.items()},
        "tasks": {task.name: task.kind for task in served.tasks},
    }
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with quiet():
            program = _program(_graph(folder, served, given, joined, calibration), arrays)
            chosen.write(program, temporary / target.name, list(arrays), list(wanted), json.dumps(metadata))
        difference = _check(chosen.open(temporary / target.name), arrays, wanted, calibration, str(output))
        for path in sorted(temporary.iterdir(), reverse=True):  # weights before the file that names them
            path.rename(target.with_name(path.name))
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name another place with --output.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info(
        "%s: %s of step %d, bundle %s, %d golden rows, largest difference %.1g",
        *(output, served.name, served.step, version, len(rows), difference),
    )
    return difference


def _target(output: str | Path, ending: str) -> Path:
    if "://" in str(output):
        raise UserError(
            f"{output}: a graph is written to a local file; name one with --output, and copy it from there."
        )
    target = Path(output)
    if target.suffix != ending:
        raise UserError(f"--output {output}: files of this format end with {ending}; change the name.")
    if target.exists():
        raise UserError(f"{output}: this file exists already; name another with --output, or remove it.")
    return target


def _graph(
    folder: Path, served: ServedModel, given: ServedInput, joined: Joined, calibration: BundleCalibration | None
) -> ServingGraph:
    """The module to export; constants are those of the first golden row."""
    model, tables = served_model(folder, served, given)
    selection = given.selection
    dense = [feature.name for feature in selection.dense]
    constants: dict[str, list[Tensor]] = {}
    for name, (ids, lengths) in ids_of(joined, selection.keys).items():
        if name in selection.constants:
            constants[name] = [torch.from_numpy(ids[:1].copy()), torch.from_numpy(lengths[:1].copy())]
    for place, name in enumerate(dense):
        if name in selection.constants:
            constants[name] = [joined.dense[:1, place].clone()]
    maps = calibration.tasks if calibration is not None else {}
    weights = {name: table.vectors(torch.arange(table.rows)) for name, table in tables.items()}
    graph = ServingGraph(model, served.tasks, weights, selection.keys, dense, constants, maps)
    return graph.eval().requires_grad_(False)


def _program(graph: ServingGraph, arrays: Arrays) -> ExportedProgram:
    """The traced module, for any number of rows and ids."""
    rows = Dim("rows", min=1)
    example, shapes = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        if name == DENSE:
            example[name], shapes[name] = torch.zeros(5, array.shape[1]), {0: rows}
        elif array.ndim == 1:
            example[name], shapes[name] = torch.tensor([0, 1, 2, 3, 1]), {0: rows}
        else:
            example[name], shapes[name] = (
                torch.zeros(5, 3, dtype=torch.int64),
                {0: rows, 1: Dim(f"most_{number}", min=1)},
            )
    return torch.export.export(graph, (example,), dynamic_shapes=(shapes,))


def _check(
    run: Run,
    arrays: Arrays,
    golden: Mapping[str, NDArray[np.float32]],
    calibration: BundleCalibration | None,
    place: str,
) -> float:
    """Largest difference between scores of the graph and golden ones, in one batch and for the first row alone.

    A calibrated score is compared with those of the golden prediction plus and minus the tolerance: a map may be steep.
    """
    found, alone = run(arrays), run({name: array[:1] for name, array in arrays.items()})
    largest = 0.0
    for task, values in golden.items():
        made = np.concatenate([found[task], alone[task]]).astype(np.float64)
        raw = np.concatenate([values, values[:1]]).astype(np.float64)
        steps = TOLERANCE * np.maximum(np.abs(raw), 1.0)
        wanted, low, high = (_mapped(calibration, task, raw + step) for step in (0.0, -steps, steps))
        bad = ~((made >= low - steps) & (made <= high + steps)) if calibration else ~(np.abs(made - raw) <= steps)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{place}: task {task!r} scores {made[row]:.8g} on golden row {row % len(values)} where the bundle gives "
                f"{wanted[row]:.8g}, so this graph is not written; use another --format, or the bundle itself."
            )
        largest = max(largest, float((np.abs(made - wanted) / np.maximum(np.abs(wanted), 1.0)).max()))
    return largest


def _mapped(calibration: BundleCalibration | None, task: str, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of raw predictions, ascending with them."""
    found = None if calibration is None else calibration.tasks.get(task)
    return raw if found is None else found.apply(np.clip(raw, 0.0, 1.0))
