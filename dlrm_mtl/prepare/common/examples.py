"""A table of examples, one per row, to splits on disk: ids for categorical columns, other columns unchanged, in row order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dlrm_mtl.prepare.common.duck import SplitWriter, one_row, stream
from dlrm_mtl.prepare.common.preparation import Preparation, refuse_empty
from dlrm_mtl.prepare.common.vocabularies import Categorical, Numbering, Vocabularies


@dataclass(frozen=True)
class Examples:
    """Output of the rows of the table ``rows``."""

    splits: Mapping[str, str]
    """SQL conditions of the splits, by name."""
    others: Mapping[str, tuple[str, pa.DataType]]
    """Columns that are not ids: name -> (SQL, type). They come first."""
    categorical: Sequence[Categorical]

    @property
    def schema(self) -> pa.Schema:
        """Columns on disk."""
        ids = {column.name: pa.list_(pa.int32()) if column.many else pa.int32() for column in self.categorical}
        return pa.schema([*((name, type_) for name, (_, type_) in self.others.items()), *ids.items()])


def write_examples(
    preparation: Preparation, examples: Examples, numbering: Numbering, *, begin: float, remedy: str
) -> dict[str, int]:
    """Number the values of the training rows, write all splits and ``vocabularies.parquet``; returns the vocabulary sizes.

    Args:
        preparation: its database has the table ``rows``.
        examples: output of the rows.
        numbering: assignment of ids to values.
        begin: fraction of the whole that was done before; 0.9 is done after.
        remedy: end of the error sentence about an empty split.

    Raises:
        UserError: a split would be empty.
    """
    vocabularies = Vocabularies(preparation.connection, numbering)
    for position, column in enumerate(examples.categorical):
        preparation.progress("numbering", begin + (0.5 - begin) * position / len(examples.categorical))
        vocabularies.add(column, "rows", examples.splits["train"])
    refuse_empty(_write_splits(preparation, examples, vocabularies), remedy)
    vocabularies.write(preparation.folder / "vocabularies.parquet")
    return vocabularies.sizes


def _write_splits(preparation: Preparation, examples: Examples, vocabularies: Vocabularies) -> dict[str, int]:
    """Write every split; returns their rows."""
    selected = [f'{expression} AS "{name}"' for name, (expression, _) in examples.others.items()]
    selected += [vocabularies.select(column) for column in examples.categorical]
    total = max(one_row(preparation.connection, "SELECT count(*) FROM rows")[0], 1)
    counts, done = {}, 0
    for split, condition in examples.splits.items():
        query = f"SELECT {', '.join(selected)} FROM rows WHERE {condition}"
        with SplitWriter(preparation.folder / split, examples.schema) as writer:
            for batch in stream(preparation.connection, query):
                columns = {name: batch.column(name) for name in batch.schema.names}
                for column in examples.categorical:
                    columns[column.name] = vocabularies.encode(column.name, columns[column.name])
                writer.write(pa.RecordBatch.from_pydict(columns))
                done += batch.num_rows
                preparation.progress(f"writing {split}", 0.5 + 0.4 * done / total)
        counts[split] = writer.rows
    return counts
