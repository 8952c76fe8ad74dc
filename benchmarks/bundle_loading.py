"""Time to load a bundle, after imports, beside that of the same bundle with tables of 8 GiB.

The larger one is made from an exported run: its last table gets more rows, of zeros, and the digests of all pages are written.
Each load is that of a new process, which has imported the package and finds the files in the system's cache, as a restarted
server does. Besides the time on the clock there is that of the processor, which depends less on other programs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import dlrm_mtl
from dlrm_mtl.checkpoint.format import DTYPES, header
from dlrm_mtl.serve.bundle import DENSE_FILE, GOLDEN_FILE, MODEL_FILE, TABLES_FILE, new_bundle
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.tensor_files import header_size, tensor_places

CONFIG = "configs/kuairand_mmoe_debug.yaml"
SIZE = 8 << 30
LOAD = """
import sys, time
from dlrm_mtl.serve import Scorer
import pandas, pyarrow, torch  # pandas: pyarrow imports it if it is there
torch.set_num_threads(1)
wall, used = time.perf_counter(), time.process_time()
Scorer(sys.argv[1], check_all=len(sys.argv) > 2)
print(time.perf_counter() - wall, time.process_time() - used)
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; print the times, and return them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = dlrm_mtl.load_config(CONFIG, ["training.max_steps=2", "training.evaluate_every=null"])
        dlrm_mtl.train(config, folder / "run", progress=False)
        export_run(folder / "run", folder / "small")
        enlarge(folder / "small", folder / "large", SIZE)
        figures = {name: _times(folder / name, 3 if quick else 9) for name in ("small", "large")}
        figures["large, all pages checked"] = _times(folder / "large", 1, "check")
        sizes = {name: (folder / name / TABLES_FILE).stat().st_size for name in ("small", "large")}
    for name, times in figures.items():
        wall, used = (np.percentile(each, [25, 50, 75]) for each in zip(*times, strict=True))
        size = sizes[name.partition(",")[0]]
        print(
            f"{name}, {size:,} bytes of tables: {wall[1]:.3f} s ({wall[0]:.3f} to {wall[2]:.3f}), of the processor "
            f"{used[1]:.3f} s ({used[0]:.3f} to {used[2]:.3f})"
        )
    return {"seconds": figures, "bytes": sizes}


def _times(bundle: Path, loads: int, *options: str) -> list[list[float]]:
    """Seconds on the clock and of the processor, of each load."""
    command = [sys.executable, "-c", LOAD, str(bundle), *options]
    printed = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(loads)]
    return [[float(number) for number in text.split()] for text in printed]


def enlarge(source: Path, target: Path, size: int) -> None:
    """Write the bundle ``source`` with so many more rows in its last table that all tables have ``size`` bytes."""
    places = tensor_places(source / TABLES_FILE)
    last = list(places)[-1]
    name, dim = last.removeprefix("tables."), places[last].shape[1]
    others = sum(place.stop - place.start for key, place in places.items() if key != last)
    rows = (size - others) // (dim * 4)
    names = {dtype: text for text, dtype in DTYPES.items()}
    shapes = {key: (rows, dim) if key == last else place.shape for key, place in places.items()}
    entries = {
        key: (names[place.dtype], shapes[key], int(np.prod(shapes[key])) * place.dtype.itemsize)
        for key, place in places.items()
    }
    model = json.loads((source / MODEL_FILE).read_text())
    for feature in model["dataset"]["features"]:
        if feature["name"] == name:
            feature["vocabulary_size"] = rows
    with new_bundle(target, lambda _: None) as folder:
        (folder / MODEL_FILE).write_text(json.dumps(model))
        for file in (DENSE_FILE, GOLDEN_FILE):
            (folder / file).write_bytes((source / file).read_bytes())
        with open(folder / TABLES_FILE, "wb") as file:
            file.write(header(entries, model["name"], model["step"]))
            start = file.tell()
            file.write((source / TABLES_FILE).read_bytes()[header_size(source / TABLES_FILE) :])
            file.truncate(start + others + rows * dim * 4)
