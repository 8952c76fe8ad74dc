"""Comparison of a run that was killed with one that was not, byte by byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.chaos.configurations import CHECKPOINT_EVERY, ROWS, Training

_CLOCK = re.compile(r"seconds|rows_per_second|data_wait_share")


def differences(run: Path, reference: Path, training: Training) -> list[str]:
    """What differs between the run, and the one that was not killed and has a checkpoint after every step."""
    found = [
        name
        for name in ("config.yaml", "contract.json", "plan.json", "results.json")
        if _text(run / name, run) != _text(reference / name, reference)
    ]
    if metrics(run) != metrics(reference):
        found.append("metrics.jsonl")
    ours, theirs = ({path.name: path for path in (home / "checkpoints").glob("step_*")} for home in (run, reference))
    steps = sorted(int(name[5:]) for name in theirs)
    wanted = {f"step_{step:08d}" for step in steps if step % CHECKPOINT_EVERY == 0 or step == steps[-1]}
    found += [f"checkpoints/{name} is missing" for name in sorted(wanted - ours.keys())]
    for name in sorted(ours):
        if name not in theirs:
            found.append(f"checkpoints/{name} is too much")
        else:
            found += [f"checkpoints/{name}/{file}" for file in _files_that_differ(ours[name], theirs[name])]
    for pointer in ("best", "latest"):
        if _text(run / "checkpoints" / pointer, run) != _text(reference / "checkpoints" / pointer, reference):
            found.append(f"checkpoints/{pointer}")
    found += [f"{path.relative_to(run)} was left" for path in run.rglob("*.tmp")]
    if training.arrivals:
        found += rows_not_used_once(run)
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl, without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not _CLOCK.fullmatch(key)} for line in lines]


def rows_not_used_once(run: Path) -> list[str]:
    """Whether each training row was used once: each has an id of its own, and the run counts batches by id."""
    newest = max((run / "checkpoints").glob("step_*"))
    counts: dict[int, int] = {}
    parts: dict[str, dict[str, NDArray[np.generic]]] = {"ids": {}, "batches": {}}
    for file in newest.glob("*.safetensors"):
        content = file.read_bytes()
        head = 8 + int.from_bytes(content[:8], "little")
        for key, entry in json.loads(content[8:head]).items():
            match = re.fullmatch(r"ids\.row\.(ids|batches)(\[\d+\])?", key)
            if match:
                start, stop = (head + offset for offset in entry["data_offsets"])
                kind = {"I64": np.int64, "I32": np.int32}[entry["dtype"]]
                parts[match[1]][match[2] or ""] = np.frombuffer(content[start:stop], kind)
    for place, ids in parts["ids"].items():
        counts.update(zip(ids[ids != 0].tolist(), parts["batches"][place][ids != 0].tolist(), strict=True))
    once = sum(count == 1 for count in counts.values())
    return [] if (once, len(counts)) == (ROWS, ROWS) else [f"{once} of {ROWS} rows were used once"]


def _files_that_differ(ours: Path, theirs: Path) -> list[str]:
    names = sorted({path.name for folder in (ours, theirs) for path in folder.iterdir()})
    return [name for name in names if _content(ours / name) != _content(theirs / name)]


def _content(path: Path) -> bytes | str | None:
    """Content of a checkpoint's file, without the run's identity and what follows from it, clocks, and folders."""
    if not path.is_file():
        return None
    run = path.parents[2]
    identity = json.loads((run / "checkpoints" / "run.json").read_text())["run"]
    if path.suffix == ".safetensors":
        return path.read_bytes().replace(identity.encode(), b"")
    content = json.loads(_text(path, run) or "{}")
    if path.name == "index.json":
        for file in content["files"].values():
            del file["sha256"]  # of a header, which holds the identity
    else:
        for key in ("seconds", "index", "sha256"):
            del content[key]
    del content["run"]
    return json.dumps(content)


def _text(path: Path, run: Path) -> str | None:
    """Text of a file of a run, without the name of its folder, and how often it has checkpoints."""
    if not path.is_file():
        return None
    text = path.read_text().replace(str(run.parent), "")
    return re.sub(r"(checkpoint_every\"?: )\d+", r"\g<1>0", text)
