"""Formats of graphs: writing one, and running it as another program would."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.extras import extras_named
from dlrm_mtl.serve.graphs.inputs import Arrays

METADATA_FILE = "dlrm_mtl.json"
"""Name of the metadata in a program of torch.export."""
METADATA_KEY = "dlrm_mtl"
"""Name of the metadata in the other formats."""

Run = Callable[[Arrays], Mapping[str, NDArray[np.float32]]]
"""Function from inputs to predictions [B] by task."""


class GraphFormat(ABC):
    """A format of graphs."""

    ending: str
    """Ending of a file's name."""

    @abstractmethod
    def require(self) -> None:
        """Raise :class:`UserError` if the format needs something that this machine lacks."""

    @abstractmethod
    def write(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], tasks: Sequence[str], metadata: str
    ) -> None:
        """Write a file.

        Args:
            program: program with one argument, a dict of ``inputs`` in this order, that returns a dict of ``tasks``.
            path: the file.
            inputs: names of the inputs.
            tasks: names of the outputs.
            metadata: JSON text to store in the file.
        """

    @abstractmethod
    def open(self, path: Path) -> Run:
        """The graph in a file, ready to run."""


class TorchFormat(GraphFormat):
    """A program of ``torch.export``, which ``torch.export.load`` reads."""

    ending = ".pt2"

    def require(self) -> None:
        """PyTorch is all that is needed."""

    def write(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], tasks: Sequence[str], metadata: str
    ) -> None:
        """Write a file."""
        torch.export.save(program, path, extra_files={METADATA_FILE: metadata})

    def open(self, path: Path) -> Run:
        """The graph in a file, ready to run."""
        return _of_torch(torch.export.load(path).module())


class CompiledFormat(GraphFormat):
    """A package of AOTInductor: machine code for CPUs like this one, which ``torch._inductor.aoti_load_package`` loads."""

    ending = ".pt2"

    def require(self) -> None:
        """Raise :class:`UserError` without a C++ compiler."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None and shutil.which("clang++") is None:
            raise UserError(
                f"--format aoti: it is compiled, and there is no C++ compiler {compiler!r} here; install one, name another in "
                "the environment variable CXX, or use --format torch."
            )

    def write(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], tasks: Sequence[str], metadata: str
    ) -> None:
        """Write a file."""
        import torch._inductor as inductor

        options = {"aot_inductor.metadata": {METADATA_KEY: metadata}}
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)

    def open(self, path: Path) -> Run:
        """The graph in a file, ready to run."""
        import torch._inductor as inductor

        return _of_torch(inductor.aoti_load_package(str(path)))


class OnnxFormat(GraphFormat):
    """ONNX. Above 2 GB the weights are in a second file, ``NAME.data``."""

    ending = ".onnx"

    def require(self) -> None:
        """Raise :class:`UserError` without the packages."""
        with extras_named():
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401

    def write(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], tasks: Sequence[str], metadata: str
    ) -> None:
        """Write a file."""
        made = torch.onnx.export(
            program, (), input_names=list(inputs), output_names=list(tasks), dynamo=True, verbose=False
        )
        assert made is not None
        names: dict[Any, str] = {}
        for given in made.model.graph.inputs:
            feature, _, kind = str(given.name).rpartition(".")
            for dim, name in zip(
                given.shape or (), ("rows", f"{feature}.most" if kind == "ids" else None), strict=False
            ):
                if name is not None and not isinstance(dim, int):
                    names[dim] = name
        made.rename_axes(names)
        made.model.metadata_props[METADATA_KEY] = metadata
        made.save(str(path))

    def open(self, path: Path) -> Run:
        """The graph in a file, ready to run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        tasks = [output.name for output in session.get_outputs()]
        return lambda arrays: dict(zip(tasks, session.run(None, arrays), strict=True))


FORMATS: dict[str, GraphFormat] = {"torch": TorchFormat(), "aoti": CompiledFormat(), "onnx": OnnxFormat()}
"""The formats by name."""


def _of_torch(module: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Run:
    @torch.no_grad()
    def run(arrays: Arrays) -> Mapping[str, NDArray[np.float32]]:
        scores = module({name: torch.from_numpy(array) for name, array in arrays.items()})
        return {task: values.numpy() for task, values in scores.items()}

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Of PyTorch's exporters only errors are shown: their warnings are about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnx_ir", "onnxscript")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
