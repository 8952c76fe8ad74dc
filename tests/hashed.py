"""The synthetic data set with ids that are not numbered: any int64 for users and items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from tests import synthetic


def scatter(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Different numbers all over int64 for different ids; 0 stays 0, 1 becomes -1 and 2 becomes -2^63 + 1."""
    scattered = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.int64)
    scattered[ids == 1], scattered[ids == 2] = -1, -(2**63) + 1
    return scattered


def write_dataset(folder: Path, rows: int = 1000, seed: int = 0) -> Path:
    """Write what :func:`tests.synthetic.write_dataset` writes, with scattered ids of users and items."""
    synthetic.write_dataset(folder, rows, seed)
    for path in folder.glob("*/*.parquet"):
        table = pq.read_table(path)
        for name in ("user", "item", "history"):
            column = table[name].combine_chunks()
            if name == "history":
                values = pa.array(scatter(column.values.to_numpy()))
                changed = pa.ListArray.from_arrays(column.offsets, values, mask=column.is_null())
            else:
                changed = pa.array(scatter(column.fill_null(0).to_numpy()), mask=column.is_null().to_numpy(False))
            table = table.set_column(table.column_names.index(name), name, changed)
        pq.write_table(table, path, row_group_size=110)
    spec = yaml.safe_load((folder / "dataset.yaml").read_text())
    for feature in spec["features"]:
        if feature["name"] in ("user", "item"):
            del feature["vocabulary_size"]
            feature["unbounded"] = True
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder


def config(dataset: Path, unbounded: dict[str, object], **changes: object) -> dict[str, object]:
    """A run's configuration for this data set."""
    content = synthetic.config(dataset, **changes)
    data = content["data"]
    assert isinstance(data, dict)
    return {**content, "data": {**data, "unbounded": unbounded}}
