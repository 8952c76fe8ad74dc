"""The file that an evaluation job writes: one line of JSON for each checkpoint."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

from dlrm_mtl.checkpoint.checkpoints import step_name
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_lines
from dlrm_mtl.run.folder import RunFolder


class EvaluationFile:
    """Lines of JSON, appended to a file or printed; for the first process.

    A line has the keys of metrics.jsonl (``kind``, which is the split, ``step`` and the metrics, null for nan) and ``run``, the
    identity of the run, so that one file can hold several splits and runs.

    Args:
        path: the file; None to print the lines.
        folder: folder of the run.
        split: the split.
    """

    def __init__(self, path: str | Path | None, folder: RunFolder, split: str) -> None:
        self.path, self.folder, self.split = path, folder, split
        self._file: BinaryIO | None = None
        self._lines: list[dict[str, Any]] = []

    def open(self) -> None:
        """Read the lines that are there, and remove an incomplete one. The file is locked as long as this process lives.

        Raises:
            UserError: the file lies in the run's folder, holds something else, cannot be written, or another job writes it.
        """
        if self.path is None:
            return
        path = Path(self.path)
        if "://" in str(self.path):
            raise UserError(
                f"--output {self.path}: lines are appended, which an object store cannot do; name a local file."
            )
        if path.resolve().is_relative_to(self.folder.path.resolve()):
            raise UserError(
                f"--output {path}: lies in the run's folder, where only its training job writes; name another."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            content = self._file.read()
            complete = content[: content.rfind(b"\n") + 1]
            self._lines = self._known(complete.decode(errors="replace"))
            self._file.truncate(len(complete))  # of a job that was killed while writing
        except BlockingIOError:
            raise UserError(f"--output {path}: another job is writing this file; name another one.") from None
        except OSError as error:
            raise UserError(f"--output {path}: cannot be written ({error.strerror}); name another file.") from None

    def _known(self, text: str) -> list[dict[str, Any]]:
        lines = [line for line in parse_lines(text) if isinstance(line.get("step"), int)]
        if len(lines) != len(text.splitlines()) or not all({"kind", "run"} <= line.keys() for line in lines):
            raise UserError(f"--output {self.path}: holds other lines than those of an evaluation; name another file.")
        return lines

    def done(self, run: str | None) -> set[str]:
        """Names of the checkpoints of ``run`` that have a line for this split."""
        return {step_name(line["step"]) for line in self._lines if (line["run"], line["kind"]) == (run, self.split)}

    def write(self, run: str | None, step: int, metrics: dict[str, float]) -> None:
        """Write the line of a checkpoint.

        Raises:
            UserError: the file cannot be written.
        """
        entry: dict[str, Any] = {"kind": self.split, "step": step, "run": run}
        entry.update({key: (value if math.isfinite(value) else None) for key, value in metrics.items()})
        self._lines.append(entry)
        line = json.dumps(entry) + "\n"
        if self._file is None:
            print(line, end="", flush=True)
            return
        try:
            self._file.write(line.encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"--output {self.path}: cannot be written ({error.strerror}); make room.") from None
