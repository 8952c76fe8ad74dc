"""Names are data, results do not depend on the host, ids go by value, nothing is lost uncounted."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.ids import hash_ids
from dlrm_mtl.prepare.table.adapter import prepare_table
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.infer import draft
from dlrm_mtl.reports.dataset_profile import profile_dataset
from tests.hostile import NAMES
from tests.prepare.tables import read_all


def described(**changes: Any) -> TableDescription:
    content = {
        "name": "x",
        "features": [{"name": "user", "kind": "sparse"}, {"name": "price", "kind": "dense"}],
        "labels": [{"name": "click"}],
        "split": {"name": "random", "shares": {"train": 0.8, "test": 0.2}},
        **changes,
    }
    return validate(TableDescription, content, "description")


def log(rows: int, user: str = "u", price: str = "price", click: str = "click") -> pa.Table:
    return pa.table(
        {
            user: [f"u{i % 9}" for i in range(rows)],
            price: [float(i % 17) for i in range(rows)],
            click: [i % 2 for i in range(rows)],
        }
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_names_of_files_and_folders(tmp_path: Path, name: str, ending: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    table = log(200, "user")
    # what the name would match as a pattern
    for path, rows in ((folder / f"{name}{ending}", 200), (folder / f"a1{ending}", 10), (folder / f"b{ending}", 10)):
        if ending == ".csv":
            table.slice(0, rows).to_pandas().to_csv(path, index=False)
        else:
            pq.write_table(table.slice(0, rows), path)
    source = folder / f"{name}{ending}"
    out = tmp_path / f"{name}.out"
    assert prepare_table([source], out, described()) == []
    assert sum(read_all(out).values()) == 200
    assert sum(split.rows for split in profile_dataset(out).splits) == 200
    assert describe(out, open_dataset(out).spec).splits == open_dataset(out).spec.splits
    assert "200 rows" in draft(source)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_columns(tmp_path: Path, name: str) -> None:
    pq.write_table(log(100, f"{name}-user", f"{name}-price", f"{name}-click"), tmp_path / "log.parquet")
    content = described(
        name=name,
        features=[{"name": f"{name}-user", "kind": "sparse"}, {"name": f"{name}-price", "kind": "dense"}],
        labels=[{"name": f"{name}-click"}],
    )
    prepare_table([tmp_path / "log.parquet"], tmp_path / "out", content)
    assert open_dataset(tmp_path / "out").spec.name == name
    assert {entry.feature.name for entry in profile_dataset(tmp_path / "out").ids} == {f"{name}-user"}


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    return str(request.param)


INSTANTS = [1709251200 + 3600 * i for i in range(48)]
TEXTS = ["2024-03-02T00:30:00+09:00", "2024-03-01 20:00:00Z", "2024-03-02 01:00:00 +0000", "2024-03-01 23:59:59"]


@pytest.mark.parametrize(
    ("times", "test_rows"),
    [
        (pa.array([s * 10**6 for s in INSTANTS], pa.timestamp("us", "UTC")), 24),
        (pa.array([s * 10**9 for s in INSTANTS], pa.timestamp("ns", "Asia/Tokyo")), 24),
        (pa.array([s * 1000 for s in INSTANTS], pa.timestamp("ms")), 24),
        (pa.array([TEXTS[i % 4] for i in range(48)]), 12),
    ],
)
def test_time_zones(tmp_path: Path, zone: str, times: pa.Array, test_rows: int) -> None:
    table = pa.table({"user": times, "when": times, "click": [i % 2 for i in range(48)]})
    pq.write_table(table, tmp_path / "log.parquet")
    hashed = [{"name": "user", "kind": "sparse", "vocabulary": {"name": "hash", "size": 100000}}]
    cuts: dict[str, Any] = {"name": "time", "column": "when", "cuts": {"test": "2024-03-02"}}
    prepare_table([tmp_path / "log.parquet"], tmp_path / "out", described(features=hashed, split=cuts))
    assert read_all(tmp_path / "out")["test"] == test_rows
    cuts["cuts"] = {"test": "2024-03-02T09:00:00+09:00"}
    prepare_table([tmp_path / "log.parquet"], tmp_path / "again", described(features=hashed, split=cuts))
    assert read_all(tmp_path / "again")["test"] == test_rows
    first = str(times[0]) if pa.types.is_string(times.type) else "2024-03-01 00:00:00"
    ids = pq.read_table(tmp_path / "out" / "train").column("user").to_pylist()
    assert hash_ids([first], 100000, feature="user")[0] in ids


WHOLE = [1, 2, 3, 2, None, 7]
FORMS = {
    "int8": pa.array(WHOLE, pa.int8()),
    "uint64": pa.array(WHOLE, pa.uint64()),
    "double": pa.array([None if v is None else float(v) for v in WHOLE]),
    "nan": pa.array([float("nan") if v is None else float(v) for v in WHOLE]),
    "float": pa.array([None if v is None else float(v) for v in WHOLE], pa.float32()),
    "decimal": pa.array([None if v is None else Decimal(v) for v in WHOLE], pa.decimal128(9, 2)),
    "text": pa.array([None if v is None else str(v) for v in WHOLE]),
    "pandas text": pa.array([None if v is None else f"{v}.0" for v in WHOLE]),
    "category": pa.array([None if v is None else str(v) for v in WHOLE]).dictionary_encode(),
    "list of texts": pa.array([[] if v is None else [f"{v}.0"] for v in WHOLE]),
    "list": pa.array([[] if v is None else [v] for v in WHOLE]),
    "list of doubles": pa.array([[float("nan")] if v is None else [float(v)] for v in WHOLE]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocabulary", [{"name": "frequency"}, {"name": "hash", "size": 1000}])
def test_ids_go_by_value(tmp_path: Path, form: str, vocabulary: dict[str, Any]) -> None:
    table = pa.table({"item": pa.array(WHOLE, pa.int64()), "last": FORMS[form], "click": [0, 1] * 3})
    pq.write_table(table, tmp_path / "log.parquet")
    features = [
        {"name": "item", "kind": "sparse", "vocabulary": vocabulary},
        {"name": "last", "kind": "sparse", "vocabulary_of": "item"},
    ]
    split = {"name": "random", "shares": {"train": 1.0}}
    prepare_table([tmp_path / "log.parquet"], tmp_path / "out", described(features=features, split=split))
    rows = pq.read_table(tmp_path / "out" / "train").to_pylist()
    last = [row["last"][0] if row["last"] else 0 for row in rows] if "list" in form else [row["last"] for row in rows]
    assert last == [row["item"] for row in rows]


@pytest.mark.parametrize("values", [[2.0**53, 1.0], [-(2.0**60), 1.0], [[2.0**53], [1.0]]])
def test_doubles_that_stand_for_several_integers_are_refused(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"user": values, "click": [0, 1]}), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"row 1: column 'user' .* write ids as integers or texts"):
        prepare_table(
            [tmp_path / "log.parquet"], tmp_path / "out", described(features=[{"name": "user", "kind": "sparse"}])
        )


NUMBERS = ["int8", "uint64", "double", "nan", "float", "decimal"]


@pytest.mark.parametrize("other", NUMBERS)
@pytest.mark.parametrize("vocabulary", [{"name": "frequency"}, {"name": "hash", "size": 1000}])
def test_ids_go_by_value_across_files(tmp_path: Path, other: str, vocabulary: dict[str, Any]) -> None:
    (tmp_path / "raw").mkdir()
    unknown = pa.nulls(len(WHOLE))
    for position, item in enumerate([unknown, *(FORMS[form] for form in ("int8", other, *NUMBERS)), unknown]):
        pq.write_table(pa.table({"item": item, "click": [0, 1] * 3}), tmp_path / f"raw/{position}.parquet")
    features = [{"name": "item", "kind": "sparse", "vocabulary": vocabulary}]
    split = {"name": "random", "shares": {"train": 1.0}}
    prepare_table([tmp_path / "raw"], tmp_path / "out", described(features=features, split=split))
    ids = pq.read_table(tmp_path / "out/train").column("item").to_pylist()
    assert ids == [0] * 6 + ids[6:12] * (1 + 1 + len(NUMBERS)) + [0] * 6
    assert len(set(ids[6:12])) == 5
    assert ids[10] == 0


@pytest.mark.parametrize("first", [True, False])
def test_lists_that_are_all_empty_take_the_type_of_another_file(tmp_path: Path, first: bool) -> None:
    (tmp_path / "raw").mkdir()
    files: list[list[Any]] = [[[], None], [["x", "y"], ["x"]]]
    for name, tags in zip("ab", files if first else files[::-1], strict=True):
        pq.write_table(pa.table({"tags": tags, "click": [0, 1]}), tmp_path / f"raw/{name}.parquet")
    split = {"name": "random", "shares": {"train": 1.0}}
    features = [{"name": "tags", "kind": "sparse"}]
    prepare_table([tmp_path / "raw"], tmp_path / "out", described(features=features, split=split))
    wanted = [[1, 2], [1]]
    found = pq.read_table(tmp_path / "out/train").column("tags").to_pylist()
    assert found == ([None, None, *wanted] if first else [*wanted, None, None])


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (
            pa.array([2**53 + 1, 2]),
            pa.array([1.0, 2.0]),
            "row 1: column 'user' holds '9007199254740992.0', .* type DOUBLE",
        ),
        (pa.array([2**24, 2]), pa.array([1.0, 2.0], pa.float32()), "row 1: .* type FLOAT from 16777216 on"),
        (pa.array([[2**53], [2]]), pa.array([[1.0], [2.0]]), "row 1: .* type DOUBLE"),
        (pa.array([1, 2]), pa.array(["1", "2"]), "has type VARCHAR, and BIGINT in .*a.parquet; write both alike"),
        (pa.array([True, False]), pa.array([1, 0]), "has type BIGINT, and BOOLEAN in"),
        (pa.array([[1], [2]]), pa.array([1, 2]), r"has type BIGINT, and BIGINT\[\] in"),
    ],
)
def test_types_that_do_not_go_together_are_refused(tmp_path: Path, one: pa.Array, other: pa.Array, what: str) -> None:
    (tmp_path / "raw").mkdir()
    for name, user in (("a", one), ("b", other)):
        pq.write_table(pa.table({"user": user, "click": [0, 1]}), tmp_path / f"raw/{name}.parquet")
    features = [{"name": "user", "kind": "sparse"}]
    with pytest.raises(UserError, match=what):
        prepare_table([tmp_path / "raw"], tmp_path / "out", described(features=features))


def test_texts_of_whole_numbers_are_one_id_across_files(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text("user,click\n17,0\n3,1\n")
    (tmp_path / "raw/b.csv").write_text("click,user\n0,17.0\n1,\n1,3.0\n")
    split = {"name": "random", "shares": {"train": 1.0}}
    features = [{"name": "user", "kind": "sparse"}]
    prepare_table([tmp_path / "raw"], tmp_path / "out", described(features=features, split=split))
    assert pq.read_table(tmp_path / "out/train").column("user").to_pylist() == [1, 2, 1, 0, 2]


@pytest.mark.parametrize("fill", [None, 0.0])
def test_nan_in_parquet_is_missing(tmp_path: Path, fill: float | None) -> None:
    prices = [float("nan") if i % 4 == 0 else float(i % 5) for i in range(200)]
    pq.write_table(pa.table({"price": prices, "click": [i % 2 for i in range(200)]}), tmp_path / "log.parquet")
    features = [{"name": "price", "kind": "dense", **({} if fill is None else {"fill": fill})}]
    split = {"name": "random", "shares": {"train": 1.0}}
    prepare_table([tmp_path / "log.parquet"], tmp_path / "out", described(features=features, split=split))
    got = pq.read_table(tmp_path / "out" / "train").column("price").to_pylist()
    assert got == [fill if value != value else value for value in prices]


@pytest.mark.parametrize("after", [0, 50, 3000])
def test_lines_behind_an_open_quote_are_counted(tmp_path: Path, after: int) -> None:
    lines = ["user,price,click", *["u1,1,0", '"u\n\n2",2,1'] * 25, 'u1,"open,1', *["u3,3,1"] * after]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    (remark,) = prepare_table([tmp_path / "log.csv"], tmp_path / "out", described(source={"malformed": "skip"}))
    assert f" {after + 1:,} malformed" in remark
    assert sum(read_all(tmp_path / "out").values()) == 50


def test_a_column_twice_is_one_sentence(tmp_path: Path) -> None:
    table = log(20, "user")
    pq.write_table(
        pa.table([*table.columns, table["user"]], names=[*table.column_names, "user"]), tmp_path / "log.parquet"
    )
    with pytest.raises(UserError, match="there are 2 columns 'user'; rename or remove one"):
        prepare_table([tmp_path / "log.parquet"], tmp_path / "out", described())
