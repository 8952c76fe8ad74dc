"""Every mistake in a user's table or its description is one sentence that names the place, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.table.adapter import prepare, prepare_table, read_description
from tests.prepare.tables import DESCRIPTION, attempt, description, rows, write_csv


def sentence(action: Callable[[], Any], lines: int = 1) -> str:
    with pytest.raises(UserError) as error:
        action()
    text = str(error.value)
    assert len(text.splitlines()) == lines, text
    assert all(line.endswith(".") for line in text.splitlines())
    return text


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Prepares files of some content, by name, and returns the sentence; nothing may be left behind."""

    def run(content: dict[str, bytes | pa.Table], **changes: Any) -> str:
        raw = tmp_path / "raw"
        raw.mkdir(exist_ok=True)
        for name, what in content.items():
            if isinstance(what, pa.Table):
                pq.write_table(what, raw / name)
            else:
                (raw / name).write_bytes(what)
        text = sentence(lambda: prepare_table([raw], tmp_path / "out", description(**changes), threads=1))
        assert {path.name for path in tmp_path.iterdir()} == {"raw"}
        return text

    return run


def good(tmp_path: Path, count: int = 40) -> bytes:
    path = write_csv(tmp_path / "raw" / "a.csv", rows(count))
    content = path.read_bytes()
    path.unlink()
    return content


def replace(content: bytes, line: int, column: str, value: bytes) -> bytes:
    """Another value in one column of one line, which must hold no quotes."""
    lines = content.split(b"\n")
    names = lines[0].split(b",")
    fields = lines[line - 1].split(b",")
    fields[names.index(column.encode())] = value
    lines[line - 1] = b",".join(fields)
    return b"\n".join(lines)


def test_lines_of_csv(refused: Callable[..., str], tmp_path: Path) -> None:
    content = good(tmp_path)
    lines = content.split(b"\n")
    short = b"\n".join([*lines[:6], b"a,b,c", *lines[6:]])
    assert "a.csv: line 7 has 3 fields where 11 are expected" in refused({"a.csv": short})
    open_quote = b"\n".join([*lines[:6], b'"a', *lines[6:]])
    assert "quote that is not closed" in refused({"a.csv": open_quote})
    wrong = b"\n".join([*lines[:6], lines[6].replace(b"u", b"\xfc"), *lines[7:]])
    text = refused({"a.csv": wrong})
    assert "a.csv: line 7 is not utf-8" in text
    assert "source.encoding" in text
    assert "do not all end alike" in refused(
        {"a.csv": lines[0] + b"\n" + b"\r\n".join(lines[1:20]) + b"\n" + lines[20] + b"\n"}
    )


def test_files(refused: Callable[..., str], tmp_path: Path) -> None:
    content = good(tmp_path)
    header = content.split(b"\n")[0]
    assert "line 1 is empty" in refused({"a.csv": b""})
    assert "there are no rows" in refused({"a.csv": header + b"\n"})
    assert "no column 'click'; did you mean 'klick'" in refused({"a.csv": content.replace(b"click", b"klick")})
    assert "names column 'user' more than once" in refused({"a.csv": content.replace(b"product", b"user", 1)})
    assert "no rows (40 malformed lines were skipped)" in refused(
        {"a.csv": content.replace(b",", b";").replace(header.replace(b",", b";"), header)}, source={"malformed": "skip"}
    )
    os.remove(tmp_path / "raw" / "a.csv")
    packed = gzip.compress(content)
    assert "may be truncated or damaged" in refused({"a.csv.gz": packed[: len(packed) // 2]})


def test_values(refused: Callable[..., str], tmp_path: Path) -> None:
    content = good(tmp_path)
    line = next(n for n, text in enumerate(content.split(b"\n"), start=1) if n > 9 and b'"' not in text)
    for value in (b"cheap", b"nan", b"-inf", b"1e999", b"9e38"):
        text = refused({"a.csv": replace(content, line, "cost", value)})
        assert f"a.csv: row {line - 1}: column 'cost' holds {value.decode()!r}" in text
        assert "'price'" in text
    assert "label 'click' cannot be: it is neither 0 nor 1" in refused({"a.csv": replace(content, line, "click", b"2")})
    text = refused({"a.csv": replace(content, line, "price", b"x")})
    assert "label 'rich', where 'income == \" 50000+.\" or price > 90' compares it with a number" in text
    log = [{**f, "transform": "log1p"} if f["name"] == "price" else f for f in DESCRIPTION["features"]]
    assert "log1p of feature 'price'" in refused({"a.csv": replace(content, line, "cost", b"-3")}, features=log)
    by_time = {"name": "time", "column": "day", "shares": {"train": 0.5, "test": 0.5}}
    text = refused({"a.csv": replace(content, line, "day", b"never")}, split=by_time)
    assert f"row {line - 1}: column 'day' holds 'never', which is no time" in text


def test_parquet(refused: Callable[..., str], tmp_path: Path) -> None:
    entries = rows(40)
    table = pa.Table.from_pylist(entries)
    other = table.set_column(table.schema.get_field_index("cost"), "cost", pa.array([1.5] * 40))
    text = refused({"a.parquet": table, "b.parquet": other})
    assert "b.parquet: column 'cost' has type DOUBLE, and VARCHAR in" in text
    (tmp_path / "raw" / "b.parquet").unlink()
    lists = table.set_column(table.schema.get_field_index("cost"), "cost", pa.array([[1.5]] * 40))
    assert "column 'cost' has type DOUBLE[], which dense feature 'price' cannot read" in refused({"a.parquet": lists})
    structs = table.set_column(0, "user", pa.array([{"x": 1}] * 40))
    assert "sparse feature 'user' cannot use" in refused({"a.parquet": structs})
    assert "there are no rows" in refused({"a.parquet": table.slice(0, 0)})
    assert "cannot be read as Parquet" in refused({"a.parquet": b"PAR1 no PAR1"})
    (tmp_path / "raw" / "a.parquet").unlink()
    assert "holds no CSV or Parquet file" in refused({})


def test_splits(refused: Callable[..., str], tmp_path: Path) -> None:
    content = good(tmp_path)
    time = {"name": "time", "column": "day"}
    assert "no column 'dya'; did you mean 'day'" in refused(
        {"a.csv": content}, split={**time, "column": "dya", "cuts": {"test": 1}}
    )
    assert "split 'test' gets none of the 40 rows" in refused(
        {"a.csv": content}, split={**time, "cuts": {"test": "2025-01-01"}}
    )
    assert "'x' is no date" in refused({"a.csv": content}, split={**time, "cuts": {"test": "x"}})
    cuts = {"validation": "2024-03-20", "test": "2024-03-10"}
    assert "'test' does not begin after 'validation'" in refused({"a.csv": content}, split={**time, "cuts": cuts})
    files = {"name": "files", "files": {"train": ["a.csv"], "test": ["b*"]}}
    assert "no file of --input matches 'b*'" in refused({"a.csv": content}, split=files)
    files = {"name": "files", "files": {"train": ["a.csv"], "test": ["*"]}}
    assert "belongs to the splits 'train' and 'test'" in refused({"a.csv": content}, split=files)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"features": []}, "features"),
        ({"features": [{"name": "user", "kind": "sparse", "clip": [0, 1]}]}, "clip has no meaning for feature 'user'"),
        ({"features": [{"name": "user", "kind": "sparse", "vocabulary": "hashing"}]}, "'hashing' is not a choice"),
        (
            {"features": [{"name": "user", "kind": "sparse", "vocabulary_of": "itm"}]},
            "which is no sparse or sequence feature",
        ),
        ({"features": [{"name": "click", "kind": "dense"}]}, "names two features or labels"),
        ({"features": [{"name": "money", "kind": "dense", "column": "income"}]}, "would tell the model the answer"),
        ({"labels": [{"name": "rich", "where": "income >"}]}, "where of label 'rich', 'income >', is no condition"),
        ({"labels": [{"name": "rich", "where": "income > 1", "kind": "real"}]}, "remove one"),
        ({"split": {"name": "random", "shares": {"train": 0.5, "test": 0.6}}}, "add up to 1"),
        ({"split": {"name": "random", "shares": {"training": 1.0}}}, "it needs `train`"),
        ({"split": {"name": "random", "shares": {"train": 0.5, "../x": 0.5}}}, "cannot be a split's name"),
        ({"source": {"header": False}}, "columns must name the columns"),
        ({"source": {"encoding": "utf-9"}}, "is no encoding"),
        ({"source": {"separator": "\n"}}, "separator"),
        ({"sources": {}}, "did you mean 'source'"),
    ],
)
def test_descriptions(change: dict[str, Any], part: str) -> None:
    assert part in sentence(lambda: description(**change))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("name: x")
    assert "features: this key is required" in sentence(lambda: read_description(tmp_path / "d.yaml"), lines=2)
    assert "--input is required" in sentence(lambda: prepare(None, tmp_path / "out"))
    assert "--infer drafts" in sentence(lambda: prepare([tmp_path], infer=tmp_path))
    path = write_csv(tmp_path / "a.csv", rows(40))
    assert "no such file" in sentence(lambda: prepare_table([tmp_path / "b.csv"], tmp_path / "out", description()))
    assert "is no size" in sentence(lambda: prepare_table([path], tmp_path / "out", description(), "much"))
    assert "already exists" in sentence(lambda: prepare_table([path], tmp_path, description()))


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: no file may grow beyond 200 kB, as if that were all there is."""
    write_csv(tmp_path / "a.csv", rows(20_000))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(DESCRIPTION, sort_keys=False))
    program = f"""
import pathlib, resource
from dlrm_mtl.prepare.table.adapter import prepare
from dlrm_mtl.core.errors import UserError
folder = pathlib.Path({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    prepare([folder / "a.csv"], folder / "out", description=folder / "d.yaml")
except UserError as error:
    print("sentence:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120
    )
    assert f"sentence: {tmp_path / 'out'}: cannot be written to the end" in done.stdout, done.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.csv", "d.yaml"}


@pytest.mark.parametrize("start", range(0, 150, 50))
def test_generated_malformed_tables(tmp_path: Path, start: int) -> None:
    outcomes = [attempt(tmp_path / str(seed), seed) for seed in range(start, start + 50)]
    assert 0 < sum(not sentence for sentence in outcomes) < 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_generated_malformed_tables(tmp_path: Path) -> None:
    for seed in range(1000, 11_000):
        attempt(tmp_path / str(seed), seed)
