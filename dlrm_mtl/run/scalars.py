"""What a run writes down as it goes: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from dlrm_mtl.run.folder import RunFolder


class Journal:
    """Appends scalars by step. A resumed run first drops the entries after the checkpoint it resumes from."""

    def __init__(self, folder: RunFolder, from_step: int) -> None:
        _drop_after(folder.metrics, from_step)
        self._file = open(folder.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=from_step + 1 if from_step else None)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write ``values`` of one ``kind`` ("train", "validation", "test") after ``step`` steps; nan becomes null."""
        entry: dict[str, object] = {"kind": kind, "step": step}
        entry.update({key: (value if math.isfinite(value) else None) for key, value in values.items()})
        self._file.write(json.dumps(entry) + "\n")
        for key, value in values.items():
            self._writer.add_scalar(f"{kind}/{key}", value, step)

    def flush(self) -> None:
        """See to it that what was written is in the files."""
        self._file.flush()
        self._writer.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()


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
            pass  # the last line of a run that was killed while writing it
    if kept != lines:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
