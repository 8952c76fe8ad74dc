"""Scalars of a run by step: the listener that writes metrics.jsonl."""

from __future__ import annotations

import json
import logging
import math
from io import FileIO
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.training.events import End, Evaluation, Listener, Log, Start

logger = logging.getLogger(__name__)


class MetricsFile(Listener):
    """Writer of metrics.jsonl: a line for every log entry and every evaluation on the validation split; nan becomes null.

    A resumed run first drops the lines after its checkpoint.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._left = b""
        self._failed = False

    def on_start(self, event: Start) -> None:
        """Open the file."""
        try:
            _drop_after(self.path, event.step)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read and written to ({error.strerror}); correct the permissions, or remove it."
            ) from None

    def on_log(self, event: Log) -> None:
        """Write an entry of the kind "train"."""
        self._write("train", event.step, event.values)

    def on_evaluation(self, event: Evaluation) -> None:
        """Write an entry of the kind "validation"; metrics of the test split are in results.json."""
        if event.split == "validation":
            self._write(event.split, event.step, event.metrics)

    def on_end(self, event: End) -> None:
        """Close the file."""
        if self._file is not None:
            self._write_left()
            self._file.close()

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        assert self._file is not None
        entry: dict[str, object] = {"kind": kind, "step": step}
        entry.update({key: (value if math.isfinite(value) else None) for key, value in values.items()})
        self._left += json.dumps(entry).encode() + b"\n"
        self._write_left()

    def _write_left(self) -> None:
        assert self._file is not None
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
            self._failed = False
        except OSError as error:  # what is left waits for the next time
            if not self._failed:
                logger.warning(
                    "WARNING: %s: cannot be written (%s); its lines are kept in memory", self.path, error.strerror
                )
            self._failed = True


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to ``step``; of a run that was killed while writing, the last line may be cut."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step(line) for line in lines]
    damaged = steps[:-1].count(None)
    if damaged:
        logger.warning("%s: %d of its lines cannot be read, and are left out; the file was changed", path, damaged)
    kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
    if kept != lines:
        write_whole(path, b"".join(kept).decode())


def _step(line: bytes) -> int | None:
    """The step of an entry; None if the line is not one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
