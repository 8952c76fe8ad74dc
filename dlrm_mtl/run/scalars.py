"""Scalars of a run by step: the listener that writes metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.training.events import End, Evaluation, Listener, Log, Start


class MetricsFile(Listener):
    """Writer of metrics.jsonl: a line for every log entry and every evaluation on the validation split; nan becomes null.

    A resumed run first drops the lines after its checkpoint.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def on_start(self, event: Start) -> None:
        """Open the file."""
        _drop_after(self.path, event.step)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

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
            self._file.close()

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        assert self._file is not None
        entry: dict[str, object] = {"kind": kind, "step": step}
        entry.update({key: (value if math.isfinite(value) else None) for key, value in values.items()})
        self._file.write(json.dumps(entry) + "\n")


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            pass  # last line of a run that was killed while writing it
    if kept != lines:
        write_whole(path, "".join(kept))
