"""Recipe of a data set from a table, kept in its folder, so that later rows of the table can be prepared like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import Strict, validate
from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.data.dataset import Dataset, read_yaml_file
from dlrm_mtl.data.raw_source import RECIPE_FILE
from dlrm_mtl.prepare.table.columns import numbered_features
from dlrm_mtl.prepare.table.description import TableDescription
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.values import whole_numbers


class Recipe(Strict):
    """Content of ``table.yaml``: facts that are not in the vocabularies and dataset.yaml."""

    format: Literal[1] = 1
    whole_numbers: list[str] = Field(default_factory=list)
    """Features whose values are numbers: a text 17.0 has the id of 17."""
    description: TableDescription
    """Description of the data set's preparation."""


def write_recipe(folder: Path, table: Table, description: TableDescription) -> None:
    """Write ``table.yaml`` into the folder of a data set whose values have been numbered."""
    content: dict[str, Any] = description.model_dump(mode="json", exclude_unset=True)
    lines = [
        "# How these rows were made, for `prepare table --like`. `source` may change with the files; nothing else may.",
        "format: 1",
        f"whole_numbers: {to_yaml(whole_numbers(table, numbered_features(description)))}",
        "description:",
    ]
    for key, value in content.items():
        if isinstance(value, list):
            lines += [f"  {key}:", *(f"  - {to_yaml(entry)}" for entry in value)]
        else:
            lines.append(f"  {key}: {to_yaml(value)}")
    (folder / RECIPE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_recipe(dataset: Dataset) -> Recipe:
    """Read the recipe of ``dataset``.

    Raises:
        UserError: there is none, or it does not fit dataset.yaml.
    """
    place = f"{dataset.path}/{RECIPE_FILE}"
    if not dataset.filesystem.get_file_info(place).is_file:
        raise UserError(
            f"{dataset.path}: holds no {RECIPE_FILE}, which says how its rows were made; earlier versions of `prepare table` "
            "did not write it: prepare the table again, from the same files and description, which gives the same ids."
        )
    recipe = validate(Recipe, read_yaml_file(dataset.filesystem, place), place)
    written = recipe.description.written
    columns = [*(one.source for one in dataset.spec.features), *(one.source for one in dataset.spec.labels)]
    odd = next((column for column in columns if column not in written), None)
    if odd is not None:
        raise UserError(
            f"{place}: does not say how column {odd!r} of dataset.yaml is made; prepare the data set again."
        )
    return recipe
