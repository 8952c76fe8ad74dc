"""Damages Parquet files at random and reads them, in a process of its own: python -m tests.data.mutated FIRST LAST."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.core.errors import UserError
from tests.data.reading import loader, table, write

ROWS = 40
OTHER = [
    pa.array(["x"] * ROWS),
    pa.array([b"\xff"] * ROWS),
    pa.nulls(ROWS),
    pa.array([1, None] * (ROWS // 2), pa.uint64()),
    pa.array([2**63, 0] * (ROWS // 2), pa.uint64()),
    pa.array([-(2**63), 1] * (ROWS // 2)),
    pa.array([float("nan"), 1e300] * (ROWS // 2)),
    pa.array([1.5] * ROWS).cast(pa.float16()),
    pa.array([True, None] * (ROWS // 2)),
    pa.array([[[1]], None] * (ROWS // 2)),
    pa.array([{"a": 1}, None] * (ROWS // 2)),
    pa.array([[{"a": 1}]] * ROWS),
    pa.array([[("k", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    pa.array([["x"], []] * (ROWS // 2)),
    pa.array([[1.0], [None]] * (ROWS // 2)),
    pa.array([[1, 2], None] * (ROWS // 2), pa.list_(pa.int8(), 2)),
    pa.array(["1", "2"] * (ROWS // 2)).dictionary_encode(),
    pa.array([1, 2] * (ROWS // 2)).dictionary_encode(),
    pa.array([1, 2] * (ROWS // 2)).cast(pa.timestamp("ns")),
    pa.array([1, 2] * (ROWS // 2), pa.int32()).cast(pa.date32()),
    pa.array([1, 2] * (ROWS // 2)).cast(pa.decimal128(20, 0)),
    pa.array([1, 2] * (ROWS // 2)).cast(pa.duration("s")),
]


def damage(path: Path, rng: np.random.Generator) -> str:
    """Change a valid file in one of several ways; returns what was done."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["bits", "footer", "cut", "remove", "insert", "zeros", "column", "columns"])
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if kind in ("bits", "footer"):
        low = footer if kind == "footer" else 0
        for position in rng.integers(low, len(content), rng.integers(1, 12)):
            content[position] ^= 1 << rng.integers(0, 8)
    elif kind == "cut":
        del content[rng.integers(0, len(content)) :]
    elif kind in ("remove", "zeros", "insert"):
        start, length = rng.integers(0, len(content)), rng.integers(1, 200)
        piece = content[start : start + length]
        change = {"remove": b"", "zeros": bytes(len(piece)), "insert": bytes(piece) + rng.bytes(length)}
        content[start : start + length] = change[str(kind)]
    if kind in ("column", "columns"):
        rows = pq.read_table(path)
        for name in rng.choice(rows.column_names, 1 if kind == "column" else 3, replace=False):
            values = OTHER[rng.integers(0, len(OTHER))]
            rows = rows.set_column(rows.schema.get_field_index(name), str(name), values)
        pq.write_table(rows, path, row_group_size=10, write_statistics=bool(rng.random() < 0.5))
    else:
        path.write_bytes(bytes(content))
    return str(kind)


def main(first: int, last: int) -> None:
    """Print one line of JSON per case, before and after it."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "set", [[10, 10, 10, 10], [ROWS]])
        path = Path(folder) / "set" / "train" / "part-001.parquet"
        rows = table(ROWS)
        for case in range(first, last):
            rng = np.random.default_rng(case)
            codec = str(rng.choice(["zstd", "snappy", "none", "gzip"]))
            version = str(rng.choice(["1.0", "2.0"]))
            pq.write_table(rows, path, row_group_size=10, compression=codec, data_page_version=version)
            kind = damage(path, rng)
            print(json.dumps({"case": case, "kind": kind}), flush=True)
            try:
                read = sum(batch.size for batch in loader(Path(folder) / "set", out_of_range="unknown").epoch(0))
                outcome = f"{read} rows"
            except UserError as error:
                text = str(error)
                outcome = "sentence" if text.endswith(".") and "\n" not in text else f"no sentence: {text}"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"
            print(json.dumps({"case": case, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
