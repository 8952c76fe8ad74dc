"""The source of a run's raw rows, for its published versions."""

from __future__ import annotations

import logging

from dlrm_mtl.checkpoint.format import sha256
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.raw_source import read_raw_source
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE
from dlrm_mtl.versions.format import RAW_COLUMNS, RAW_FILES

logger = logging.getLogger(__name__)


def published_source(dataset: Dataset, state: RunState) -> dict[str, bytes]:
    """Parts of a base that describe raw rows, by name; none if the data set doesn't know them. For one process.

    Training does not depend on them, so what cannot be read is only reported.

    Args:
        dataset: data set of the run.
        state: state of the run, with its contract.
    """
    try:
        found = read_raw_source(dataset)
    except UserError as error:
        logger.info("note: published versions score prepared rows only: %s", error)
        return {}
    if found is None:
        return {}
    vocabularies = found.files.get(VOCABULARIES_FILE)
    digest = None if vocabularies is None else sha256(vocabularies)
    if digest != (state.contract or {}).get("vocabularies"):
        logger.info(
            "note: published versions score prepared rows only: %s/%s is not the one of the run's training",
            dataset.path,
            VOCABULARIES_FILE,
        )
        return {}
    files = {RAW_FILES[name]: content for name, content in found.files.items()}
    return {RAW_COLUMNS: found.columns.model_dump_json().encode(), **files}
