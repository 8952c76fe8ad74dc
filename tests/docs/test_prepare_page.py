"""The files shown in docs/prepare.md are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import yaml

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.schema import validate
from dlrm_mtl.prepare.common.ids import hash_ids
from dlrm_mtl.prepare.table.conditions import parse_condition
from dlrm_mtl.prepare.table.description import TableDescription


def test_description_and_configuration(repository: Path) -> None:
    text = (repository / "docs" / "prepare.md").read_text(encoding="utf-8")
    description, run = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    labels = {label.name for label in validate(TableDescription, yaml.safe_load(description), "docs/prepare.md").labels}
    tasks = validate(RunConfig, yaml.safe_load(run), "docs/prepare.md").tasks
    assert {task.label_name for task in tasks} <= labels


def test_conditions(repository: Path) -> None:
    text = (repository / "docs" / "prepare.md").read_text(encoding="utf-8")
    block = text.split("which makes a binary label:")[1].split("Comparisons are")[0]
    conditions = [line.strip() for line in block.splitlines() if line.strip()]
    assert len(conditions) == 3
    for condition in conditions:
        parse_condition(condition)


def test_the_hash_in_duckdb_as_it_stands_in_the_table(repository: Path) -> None:
    text = (repository / "docs" / "prepare.md").read_text(encoding="utf-8")
    found = re.search(r"\| DuckDB \| `(.*?)` \|", text)
    assert found
    expression = found.group(1).replace("\\|", "|").replace("md5(x)", "md5('0:user_id:' || 'ann')")
    with duckdb.connect() as connection:
        (row,) = connection.execute(f"SELECT 1 + {expression} % 999999").fetchall()
    assert [row[0]] == hash_ids(["ann"], 1_000_000, feature="user_id").tolist()
