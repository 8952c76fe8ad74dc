"""Parts of out-of-core preparation: the workspace, the stream and the writer."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.common.duck import (
    ROW_GROUP_ROWS,
    SplitWriter,
    find_files,
    insert_csv,
    one_row,
    scratch,
    stream,
    workspace,
)


@pytest.mark.parametrize("rows", [0, 5, 2 * ROW_GROUP_ROWS, 5 * ROW_GROUP_ROWS + 7])
def test_files_and_row_groups_have_equal_size_whatever_the_batches(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(rows)
    schema = pa.schema([("number", pa.int64()), ("list", pa.list_(pa.int32()))])
    start = 0
    with SplitWriter(tmp_path, schema, plain=["number"], file_rows=2 * ROW_GROUP_ROWS) as writer:
        while start < rows:
            count = min(int(rng.integers(1, 90_000)), rows - start)
            number = np.arange(start, start + count)
            lists = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), number.astype(np.int32))
            writer.write(pa.RecordBatch.from_pydict({"list": lists, "number": number}))
            start += count
    assert writer.rows == rows
    files = sorted(tmp_path.glob("*.parquet"))
    assert [path.name for path in files] == [f"part-{n:05d}.parquet" for n in range(-(-rows // (2 * ROW_GROUP_ROWS)))]
    groups = [pq.read_metadata(path) for path in files]
    sizes = [metadata.row_group(place).num_rows for metadata in groups for place in range(metadata.num_row_groups)]
    assert sizes == [min(ROW_GROUP_ROWS, rows - first) for first in range(0, rows, ROW_GROUP_ROWS)]
    assert all(metadata.num_rows == 2 * ROW_GROUP_ROWS for metadata in groups[:-1])
    if files:
        table = pa.concat_tables(map(pq.read_table, files))
        assert table.column("number").to_pylist() == list(range(rows))
        assert table.column("list").combine_chunks().flatten().to_pylist() == list(range(rows))


def test_the_workspace_spills_and_leaves_nothing(tmp_path: Path) -> None:
    rows = 3_000_000  # 24 MB a column, beside 64 MB of memory
    with workspace(tmp_path, "64MB", 2) as connection:
        connection.execute(f"CREATE TABLE numbers AS SELECT range AS a, range * 7919 % {rows} AS b FROM range({rows})")
        expected = 0
        for batch in stream(connection, "SELECT b, a, a + 1, a + 2 FROM numbers ORDER BY b"):
            first = batch.column(0).to_numpy()
            assert np.array_equal(first, np.arange(expected, expected + len(first)))
            expected += len(first)
            assert one_row(connection, "SELECT count(*) FROM numbers") == (rows,)  # meanwhile
        assert expected == rows
        scratch(tmp_path, "note").write_text("temporary")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--memory 1MB: is too little"), workspace(tmp_path, "1MB", 1) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT range AS a FROM range(10000000)")
    with pytest.raises(UserError, match="--memory much: this is no size"), workspace(tmp_path, "much", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_gzip_or_end_early_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"%d,2\n" % number for number in range(100_000)))
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.csv.gz").write_text("1,2\n")
    for name in ("cut", "text"):
        with workspace(tmp_path / "work", "200MB", 1) as connection:
            (path,) = find_files(tmp_path, [f"{name}.csv"], "a file")
            columns = {"a": "INTEGER", "b": "INTEGER"}
            with pytest.raises(UserError, match=f"{name}.csv.gz: cannot be read as expected"):
                insert_csv(
                    connection, "rows", [path], columns, "a, b", options="header = false, delim = ',', quote = ''"
                )


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder; name the one that holds x\.csv"):
        find_files(tmp_path / "none", ["x.csv"], "x.csv")
    with pytest.raises(UserError, match=r"lacks the log \(x\*.csv or y.csv, plain or with .gz appended\)"):
        find_files(tmp_path, ["x*.csv", "y.csv"], "the log")
    for name in ("x2.csv.gz", "x1.csv", "z.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in find_files(tmp_path, ["x*.csv", "y.csv"], "the log")] == ["x1.csv", "x2.csv.gz"]
