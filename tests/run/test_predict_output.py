"""The file that ``predict`` writes, in every format, and what it says of files that are no Parquet."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from tests import commands, synthetic


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=800)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dlrm_mtl.Run:
    content = synthetic.config(dataset, training={"epochs": 1, "max_steps": 5, "log_every": 5})
    loaded = dlrm_mtl.load_config(commands.write_config(dataset / "run.yaml", content))
    return dlrm_mtl.train(loaded, output=tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def predicted(run: dlrm_mtl.Run, dataset: Path) -> pa.Table:
    """Expected content of the files, by other code: the API's table, which is not written."""
    table = run.predict(dataset / "test", carry=["row"], batch_size=37)
    assert table is not None
    return table


def read(path: Path) -> pa.Table:
    """A file of predictions, by readers that know nothing of how it was written."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".csv" in path.name.lower():
        return pyarrow.csv.read_csv(pa.BufferReader(content))
    return pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])


@pytest.mark.parametrize("name", ["p.csv", "p.CSV.gz", "p.jsonl", "p.jsonl.gz"])
def test_every_format_holds_the_same_numbers(
    run: dlrm_mtl.Run, dataset: Path, predicted: pa.Table, tmp_path: Path, name: str
) -> None:
    run.predict(dataset / "test", tmp_path / name, carry=["row"], batch_size=37)
    found = read(tmp_path / name)
    assert found.column_names == ["row", "click", "buy"]
    assert found.cast(predicted.schema).equals(predicted), "all digits of float32, in the order of the rows"
    assert not list(tmp_path.glob("*.tmp"))


def test_several_processes_write_rows_in_order(
    run: dlrm_mtl.Run, dataset: Path, predicted: pa.Table, tmp_path: Path
) -> None:
    target = tmp_path / "p.csv"
    arguments = ("--input", dataset / "test", "--output", target, "--carry", "row", "--batch-size", 37)
    done = commands.run("predict", run.folder, *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    found = read(target)
    assert found["row"].to_pylist() == predicted["row"].to_pylist()
    for task in ("click", "buy"):
        assert found[task].to_pylist() == pytest.approx(predicted[task].to_pylist(), rel=1e-5)


def test_gzip_files_are_the_same_each_time(run: dlrm_mtl.Run, dataset: Path, tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv.gz"):
        run.predict(dataset / "test", tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_text_in_a_csv_file_is_quoted(run: dlrm_mtl.Run, dataset: Path, tmp_path: Path) -> None:
    rows = pq.read_table(dataset / "test").slice(0, 4)
    texts = ['a "b", c', "two\nlines", "", None]
    pq.write_table(rows.append_column("text", [texts]), tmp_path / "rows.parquet")
    run.predict(tmp_path / "rows.parquet", tmp_path / "p.csv", carry=["text"])
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    found = pyarrow.csv.read_csv(tmp_path / "p.csv", parse_options=parsing, convert_options=options)
    assert found["text"].to_pylist() == texts


def test_an_ending_without_a_format_is_refused(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    for name in ("p.tsv", "p.xlsx", "predictions"):
        code, said = call("predict", tmp_path / "run", "--input", tmp_path, "--output", tmp_path / name)
        assert code == 2
        assert f"{name}: the name ends in none of .parquet, .csv, .csv.gz, .jsonl, .jsonl.gz;" in said


def test_lists_do_not_go_into_csv(run: dlrm_mtl.Run, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--carry tags: CSV cannot hold a column of the type list<.*name the output"):
        run.predict(dataset / "test", tmp_path / "p.csv", carry=["row", "tags"])
    assert not list(tmp_path.iterdir())
    run.predict(dataset / "test", tmp_path / "p.jsonl", carry=["tags"])
    assert read(tmp_path / "p.jsonl")["tags"].to_pylist() == pq.read_table(dataset / "test")["tags"].to_pylist()


@pytest.mark.parametrize("name", ["p.csv.gz", "p.parquet"])
def test_a_full_disk_is_one_sentence(
    call: Callable[..., tuple[int, str]], run: dlrm_mtl.Run, dataset: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code, said = call("predict", run.folder, "--input", dataset / "test", "--output", target, "--carry", "row")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2, said
    assert f"{name}: cannot be written" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


CSV = b"user,item\n1,2\n3,4\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            CSV,
            "is text, not a Parquet file; make Parquet of a CSV file with `dlrm-mtl prepare table`; with --like DATASET",
        ),
        (gzip.compress(CSV), "is text, compressed by gzip, and not a Parquet file; make Parquet of a CSV file with"),
        (b'{"user": 1}\n', "is JSON, not a Parquet file; write it as Parquet"),
        (gzip.compress(b'[{"user": 1}]'), "is JSON, compressed by gzip, and not a Parquet file; write it as Parquet"),
        (gzip.compress(b"\x00\x01"), "is something, compressed by gzip, and not a Parquet file; decompress it."),
        (b"PK\x03\x04" + bytes(40), "is a zip archive, not a Parquet file; unpack it"),
        (b"PK\x03\x04" + b"xl/workbook.xml", "is an Excel workbook, not a Parquet file; save the table as CSV"),
        (b"\x80\x04\x95", "is a Python pickle, not a Parquet file"),
        (b"PAR1 and no more", "cannot be read as Parquet ("),
        (b"\x00\x01\x02" * 10, "cannot be read as Parquet ("),
        (b"", "cannot be read as Parquet ("),
    ],
)
def test_input_that_is_no_parquet(run: dlrm_mtl.Run, tmp_path: Path, content: bytes, sentence: str) -> None:
    source = tmp_path / "rows.parquet"
    source.write_bytes(content)
    for use in (lambda: run.predict(source), lambda: run.evaluate(input=source)):
        with pytest.raises(UserError) as error:
            use()
        assert f"{source}: {sentence}" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_of_csv_files(run: dlrm_mtl.Run, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(CSV)
    with pytest.raises(UserError, match=r"holds no Parquet file \(\*.parquet\); it holds b.csv: make Parquet of a CSV"):
        run.predict(tmp_path)


def test_a_csv_file_as_data_path(call: Callable[..., tuple[int, str]], dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(CSV)
    code, said = call("train", dataset / "run.yaml", "--set", f"data.path={tmp_path}/b.csv", "--output", tmp_path / "r")
    assert code == 2
    assert "b.csv: is a file; data.path must name a data set's folder, which holds dataset.yaml and which" in said
