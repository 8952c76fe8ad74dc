"""The source of a data set's ids and numbers: its recipe, its vocabularies, and facts about its columns."""

from __future__ import annotations

from dataclasses import dataclass

from pyarrow import fs

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.data.dataset import Dataset, Split, read_again, unreachable
from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE

RECIPE_FILE = "table.yaml"
"""Name of the recipe in a data set's folder, see :mod:`dlrm_mtl.prepare.table.recipe`."""


class ColumnFacts(Strict):
    """Facts about the columns of a split's files."""

    lists: list[str]
    """Columns that hold lists."""
    nulls: list[str]
    """Columns, of single values, that hold nulls, as far as the files' statistics say."""


@dataclass(frozen=True)
class RawSource:
    """Files and facts that lead from raw rows to rows of a data set."""

    columns: ColumnFacts
    """Facts about the training files."""
    files: dict[str, bytes]
    """Content of those of the recipe and the vocabularies that the data set has, by name."""


def column_facts(split: Split) -> ColumnFacts:
    """Facts about the columns of ``split``."""
    schema = split.files[0].schema
    nulls = dict.fromkeys(schema.names, False)
    for file in split.files:
        for group in range(file.metadata.num_row_groups):
            chunks = file.metadata.row_group(group)
            for index in range(chunks.num_columns):
                chunk = chunks.column(index)
                statistics = chunk.statistics
                if chunk.path_in_schema in nulls and (statistics is None or statistics.null_count):
                    nulls[chunk.path_in_schema] = True
    return ColumnFacts(
        lists=[name for name in schema.names if is_list(schema.field(name).type)],
        nulls=[name for name, found in nulls.items() if found],
    )


def read_raw_source(dataset: Dataset) -> RawSource | None:
    """The source of ``dataset``; None if it has neither a recipe nor vocabularies.

    Raises:
        UserError: a file cannot be read, or there are no training files.
    """
    files = {}
    for name in (RECIPE_FILE, VOCABULARIES_FILE):
        content = _read(dataset.filesystem, f"{dataset.path}/{name}")
        if content is not None:
            files[name] = content
    return RawSource(column_facts(dataset.split("train")), files) if files else None


def _read(filesystem: fs.FileSystem, path: str) -> bytes | None:
    """Content of a file; None if there is none."""

    def read() -> bytes | None:
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    return read_again(read, filesystem, path, unreachable)
