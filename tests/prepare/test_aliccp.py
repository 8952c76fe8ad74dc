"""The Ali-CCP adapter, on generated files of the published layout beside plain Python."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare import ADAPTERS
from dlrm_mtl.prepare.aliccp.files import COMMON, OWN
from tests.prepare.published import SPLITS, differences, read_through, split, values

MANY = ("109_14", "110_14", "127_14", "150_14", "210")
Entries = dict[str, list[int]]


def entries(rng: np.random.Generator, names: tuple[str, ...]) -> Entries:
    """Ids by field; some fields are absent, some have several."""
    made = {}
    for name in names:
        count = int(rng.integers(0, 7)) if name in MANY else int(rng.random() < 0.9)
        made[name] = rng.integers(1, 15, count).tolist()
    return made


def text(made: Entries) -> str:
    return "\x01".join(f"{name}\x02{value}\x03{0.5 + value}" for name, ids in made.items() for value in ids)


class Published:
    """Files of the published layout, and what is in them."""

    def __init__(self, seed: int = 0, rows: int = 300, users: int = 25) -> None:
        rng = np.random.default_rng(seed)
        self.common: dict[str, dict[str, Entries]] = {}
        self.skeleton: dict[str, list[dict[str, Any]]] = {}
        for part in ("train", "test"):
            names = [hashlib.md5(f"{part}{user}".encode()).hexdigest()[:16] for user in range(users)]
            self.common[part] = {name: entries(rng, COMMON) for name in names}
            self.skeleton[part] = []
            for number in range(rows):
                click = int(rng.random() < 0.3)
                self.skeleton[part].append(
                    {
                        "sample": number + 1,
                        "click": click,
                        "conversion": click * int(rng.random() < 0.3),
                        "common": names[int(rng.integers(0, users))],
                        "own": entries(rng, OWN),
                    }
                )
        self.skeleton["test"][5]["common"] = "0123456789abcdef"
        self.skeleton["train"][5] |= {"click": 0, "conversion": 1}

    def write(self, folder: Path, compress: bool = False) -> Path:
        folder.mkdir(parents=True)
        for part in ("train", "test"):
            skeleton = "".join(
                f"{row['sample']},{row['click']},{row['conversion']},{row['common']},"
                f"{sum(map(len, row['own'].values()))},{text(row['own'])}\n"
                for row in self.skeleton[part]
            )
            common = "".join(f"{name},{sum(map(len, e.values()))},{text(e)}\n" for name, e in self.common[part].items())
            for name, content in (("sample_skeleton", skeleton), ("common_features", common)):
                if compress:
                    (folder / f"{name}_{part}.csv.gz").write_bytes(gzip.compress(content.encode()))
                else:
                    (folder / f"{name}_{part}.csv").write_text(content)
        return folder

    def parts(self, share: float, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
        def held(row: dict[str, Any]) -> bool:
            digest = hashlib.md5(f"{seed}:split:{row['sample']}".encode()).hexdigest()
            return int(digest[:15], 16) < round(share * 2**60)

        train = self.skeleton["train"]
        return {
            "train": [row for row in train if not held(row)],
            "validation": [row for row in train if held(row)],
            "test": self.skeleton["test"],
        }


def test_every_row(tmp_path: Path) -> None:
    published = Published()
    ADAPTERS["aliccp"].part(
        published.write(tmp_path / "raw"), tmp_path / "out", max_list=4, min_count=3, validation_share=0.2
    )
    names, parts = values(tmp_path / "out"), published.parts(0.2)
    counts = {name: Counter(i for row in parts["train"] for i in row["own"][name][:4]) for name in OWN}
    counts |= {name: Counter(i for e in published.common["train"].values() for i in e[name][:4]) for name in COMMON}
    for part in SPLITS:
        source = published.common["test" if part == "test" else "train"]
        for row, raw in zip(split(tmp_path / "out", part), parts[part], strict=True):
            assert (row["sample"], row["click"]) == (raw["sample"], raw["click"])
            assert row["conversion"] == (raw["conversion"] if raw["click"] else None)
            features = raw["own"] | source.get(raw["common"], {name: [] for name in COMMON})
            for name, ids in features.items():
                found: Any = row[f"field_{name}"]
                if name not in MANY:
                    assert (found is None) == (ids == [])
                    found = [] if found is None else [found]
                wanted = [str(i) if counts[name][i] >= 3 else None for i in ids[:4]]
                assert [names.get((name, i)) for i in found] == wanted
    description = open_dataset(tmp_path / "out").spec.description
    assert "1 impressions had a conversion without a click" in description
    assert "1 impressions have no common features" in description
    read_through(tmp_path / "out", ["click", "conversion"])


def test_fields(tmp_path: Path) -> None:
    raw = Published().write(tmp_path / "raw")
    ADAPTERS["aliccp"].part(raw, tmp_path / "out", fields="205, 101,109_14")
    assert open_dataset(tmp_path / "out").spec.names("sparse") == ["field_205", "field_101", "field_109_14"]
    with pytest.raises(UserError, match="there is no field '109_15'; did you mean '109_14'"):
        ADAPTERS["aliccp"].part(raw, tmp_path / "other", fields="109_15")


def test_the_same_bytes_whatever_the_threads_memory_and_compression(tmp_path: Path) -> None:
    published = Published(rows=3000)
    ADAPTERS["aliccp"].part(published.write(tmp_path / "raw"), tmp_path / "one", threads=1)
    ADAPTERS["aliccp"].part(
        published.write(tmp_path / "gz", compress=True), tmp_path / "many", threads=4, memory="300MB"
    )
    assert differences(tmp_path / "one", tmp_path / "many") == []


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("sample_skeleton_train.csv", "x,0,0,abc,0,\n", "cannot be read as expected"),
        ("sample_skeleton_train.csv", "1,3,0,abc,0,\n", "1 rows have no sample id or a label other than 0 and 1"),
        ("sample_skeleton_train.csv", "1,0\n", "cannot be read as expected"),
        ("common_features_test.csv", "twice,0,\ntwice,0,\n", "has 1 rows whose index came before"),
    ],
)
def test_mistakes(tmp_path: Path, file: str, line: str, sentence: str) -> None:
    raw = Published(rows=20).write(tmp_path / "raw")
    with open(raw / file, "a") as content:
        content.write(line)
    with pytest.raises(UserError) as error:
        ADAPTERS["aliccp"].part(raw, tmp_path / "out")
    assert f"{file}: " in str(error.value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    (raw / file).unlink()
    with pytest.raises(UserError, match="lacks"):
        ADAPTERS["aliccp"].part(raw, tmp_path / "out")
