"""Raw rows of a bundle on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.bundle import GOLDEN_FILE, VALUES_FILE, ServedModel
from dlrm_mtl.serve.golden import read_golden, read_raw_golden
from dlrm_mtl.serve.raw.golden import check_raw_rows
from dlrm_mtl.serve.raw.lookup import ValueIds
from dlrm_mtl.serve.raw.reader import RawReader
from dlrm_mtl.serve.tensor_files import map_tensors

RowKind = Literal["prepared", "raw"]
"""Rows to score: those of the ``prepared`` data set, or ``raw`` ones, which are prepared like the data set."""


def open_reader(folder: Path, served: ServedModel, rows: RowKind) -> RawReader | None:
    """Reader of raw rows, None for prepared ones, after checking that golden raw rows are read as in training.

    Args:
        folder: folder of the bundle, whose bytes have been checked.
        served: content of its model.json.
        rows: rows to score.

    Raises:
        UserError: a feature is read otherwise than in training, or the bundle knows no raw rows.
    """
    if served.raw is None:
        if rows == "raw":
            raise UserError(
                f"{folder}: this bundle knows no raw rows, because its data set had no table.yaml or vocabularies.parquet when "
                "it was exported or published; export the run again where the data set is, or score rows of the prepared data "
                "set."
            )
        return None
    values = map_tensors(folder / VALUES_FILE)
    reader = RawReader(
        served.raw, {owner: ValueIds.load(values, owner, seed) for owner, seed in served.raw.seeds.items()}
    )
    raw_rows = read_raw_golden(folder / GOLDEN_FILE)
    if raw_rows:
        features = [served.dataset.feature(feature.name) for feature in served.raw.features]
        check_raw_rows(reader, features, raw_rows, read_golden(folder / GOLDEN_FILE)[0], str(folder))
    return reader if rows == "raw" else None
