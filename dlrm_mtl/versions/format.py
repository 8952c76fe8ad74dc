"""Format of published versions: a whole model, and the changes that follow it, each named by the checksum of the one before.

A folder of versions holds ``chain.json``, the identity of the chain, and a folder ``version_N/`` for each version:

- ``rank_*.safetensors`` and ``index.json``: tensors in the format of checkpoints, see :mod:`dlrm_mtl.checkpoint.format`;
  every process writes its own shards.
- ``version.json``: what the version is, the SHA-256 of ``index.json``, of the ``version.json`` that it applies to, and of
  itself. It is written last; a folder without it is not a version.

A whole model, a *base*, has the tensors of a checkpoint without optimizers (``tables.NAME``, ``ids.NAME``, ``dense.NAME``),
``golden.rows``, the UTF-8 text of a JSON list of rows, and ``raw.*``, bytes of files of the data set that describe raw rows,
where it has them. A *delta* has all of ``dense.NAME``, and of tables and ids only
rows that have changed: ``rows:COLUMN:FIRST:TABLE`` [K] int64 with ``values:COLUMN:FIRST:TABLE`` [K, D], where COLUMN is the
first of D columns and FIRST the first row; ``id_rows:FIRST:NAME`` [K] with ``ids:FIRST:NAME`` [K] int64. Both have
``golden.scores`` [N, T] float32: the trained model's predictions for the golden rows, the first of the rows that it scored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from dlrm_mtl.checkpoint.format import sha256
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.schema import Strict, validate
from dlrm_mtl.data.raw_source import RECIPE_FILE
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE

FORMAT = 1
CHAIN_FILE = "chain.json"
VERSION_FILE = "version.json"
REMEDY = "the version was changed or is damaged: servers go on with the one before until the training publishes a whole model"
"""End of error sentences about a damaged version."""
GOLDEN_ROWS = "golden.rows"
GOLDEN_SCORES = "golden.scores"
RAW_COLUMNS = "raw.columns"
"""Tensor with the JSON text of :class:`~dlrm_mtl.data.raw_source.ColumnFacts`."""
RAW_FILES = {RECIPE_FILE: "raw.recipe", VOCABULARIES_FILE: "raw.vocabularies"}
"""Tensors with the bytes of a data set's files."""
_NAME = re.compile(r"version_(\d{8,})")


class Version(Strict):
    """The content of ``version.json``, without its own checksum."""

    format: int
    chain: str
    """Identity of the chain: of the run that publishes it."""
    number: int = Field(ge=1)
    kind: Literal["base", "delta"]
    step: int = Field(ge=0)
    """Step of the training."""
    applies_to: str | None
    """SHA-256 of the ``version.json`` of the version before; None for a base."""
    index: str
    """SHA-256 of ``index.json``."""
    size: int = Field(ge=0)
    """Size of all other files in bytes."""
    golden_batches: list[int]
    """Numbers of golden rows that the trained model scored at a time."""
    golden_sums: dict[str, tuple[float, float]]
    """Sums of every part of the model's input on the golden rows, see :mod:`dlrm_mtl.models.input_sums`."""
    contract: dict[str, Any] | None = None
    """Data contract of the run; only in a base."""
    config: dict[str, Any] | None = None
    """Parts of the run's configuration that describe the model; only in a base."""


@dataclass(frozen=True)
class StoredVersion:
    """A complete version."""

    version: Version
    digest: str
    """SHA-256 of its ``version.json``."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return version_name(self.version.number)

    @property
    def id(self) -> str:
        """Short name that distinguishes versions of all chains: number and checksum."""
        return f"{self.version.number}-{self.digest[:16]}"


def version_name(number: int) -> str:
    """Name of the folder of a version."""
    return f"version_{number:08d}"


def version_number(name: str) -> int | None:
    """Number of the version with a folder of this name; None for other names."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found and version_name(int(found[1])) == name else None


def version_text(version: Version) -> str:
    """Text of ``version.json``."""
    content = version.model_dump(mode="json")
    return json.dumps({**content, "sha256": sha256(json.dumps(content).encode())})


def parse_version(text: bytes, place: str) -> StoredVersion:
    """The version of a ``version.json``.

    Raises:
        UserError: the format is unknown, or the text was changed.
    """
    content = parse_mapping(text, place, REMEDY)
    expected = content.pop("sha256", None)
    format = content.get("format")
    if format != FORMAT or isinstance(format, bool):
        raise UserError(
            f"{place}: this version has the format {format!r} and this release of dlrm-mtl reads {FORMAT}; use the release "
            "that publishes it."
        )
    if sha256(json.dumps(content).encode()) != expected:
        raise UserError(f"{place}: does not have its checksum; {REMEDY}.")
    return StoredVersion(validate(Version, content, place), sha256(text))
