"""Raw rows of a published version, from the source that its base holds, made by the same code as those of an export."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from pyarrow import fs

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.raw_source import ColumnFacts
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.serve.raw.export import RawExport, raw_rows_in
from dlrm_mtl.versions.content import VersionReader
from dlrm_mtl.versions.format import RAW_COLUMNS, RAW_FILES, REMEDY

logger = logging.getLogger(__name__)


def published_raw(reader: VersionReader, config: RunConfig, spec: DatasetSpec, place: str) -> RawExport | None:
    """Raw rows of a base; None if it knows none, or they are not those of the training, which is logged.

    Args:
        reader: reader of the base.
        config: configuration of the run, with all feature names.
        spec: description of the data set in the contract.
        place: place of the base, for errors.

    Raises:
        UserError: a byte of the base was changed.
    """
    there = [name for name in (RAW_COLUMNS, *RAW_FILES.values()) if name in reader.index.tensors]
    if not there:
        return None
    content = {name: tensor.numpy().tobytes() for name, tensor in reader.read(there).items()}
    facts = parse_mapping(content[RAW_COLUMNS], f"{place}: {RAW_COLUMNS}", REMEDY)
    columns = validate(ColumnFacts, facts, f"{place}: {RAW_COLUMNS}")
    with tempfile.TemporaryDirectory() as folder:
        for name, stored in RAW_FILES.items():
            if stored in content:
                (Path(folder) / name).write_bytes(content[stored])
        try:
            return raw_rows_in(Dataset(fs.LocalFileSystem(), folder, spec), config.data, spec, columns)
        except UserError as error:
            reason = str(error).replace(folder, place)
            logger.warning("WARNING: %s scores prepared rows only: %s", place, reason)
            return None
