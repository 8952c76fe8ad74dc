"""A bundle: a trained model in one folder. Nothing in it is executed, and every byte has a checksum.

It holds

- ``model.json``: the tasks, the model's configuration, and the data contract: features in order, kinds, transforms,
  vocabulary sizes.
- ``tables.safetensors``: every whole embedding table, ``tables.NAME`` [rows, dim] of float32 or float16, or [rows, row_bytes]
  uint8 if quantised, see :mod:`dlrm_mtl.embeddings.row_formats`; and the id of each row, ``ids.NAME`` [rows] int64.
- ``tables.pages``: SHA-256 of each page of ``tables.safetensors``, see :mod:`dlrm_mtl.serve.pages`.
- ``dense.safetensors``: all other weights.
- ``golden.jsonl``: rows of the data set as stored, with their raw values if these are known, and their scores from the
  trained model.
- files of :data:`OPTIONAL`, as the export asks for them: ``quality.json``, what rounding the tables changes, see
  :mod:`dlrm_mtl.serve.quality`.
- ``bundle.json``: the format, and size and SHA-256 of each file. It is written last; its own SHA-256 is the bundle's version.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.parts import rebuild
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.schema import Strict, validate
from dlrm_mtl.data.config import DataConfig, UnboundedConfig
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.models.registry import AnyModelConfig
from dlrm_mtl.serve.calibration import CALIBRATION_FILE
from dlrm_mtl.serve.pages import PagedFile, digests_size, write_digests
from dlrm_mtl.serve.raw.description import RawRows
from dlrm_mtl.serve.tensor_files import REMEDY
from dlrm_mtl.storage.output import sync_folder, write_whole
from dlrm_mtl.tasks.config import TaskConfig

FORMAT = 2
BUNDLE_FILE = "bundle.json"
MODEL_FILE = "model.json"
TABLES_FILE = "tables.safetensors"
DIGESTS_FILE = "tables.pages"
DENSE_FILE = "dense.safetensors"
GOLDEN_FILE = "golden.jsonl"
FILES = (MODEL_FILE, TABLES_FILE, DIGESTS_FILE, DENSE_FILE, GOLDEN_FILE)
"""Files of every bundle."""
CHANGES_FILE = "changes.safetensors"
"""Rows that replace those of the tables, see :mod:`dlrm_mtl.serve.changes`."""
VALUES_FILE = "values.safetensors"
"""Vocabularies of raw values, see :mod:`dlrm_mtl.serve.raw.lookup`."""
QUALITY_FILE = "quality.json"
"""What rounding the tables changes, see :mod:`dlrm_mtl.serve.quality`."""
OPTIONAL: tuple[str, ...] = (CHANGES_FILE, CALIBRATION_FILE, VALUES_FILE, QUALITY_FILE)
"""Files that a bundle may hold as well. They are listed in ``bundle.json`` and checked like the others."""
PAGED = {TABLES_FILE: DIGESTS_FILE}
"""Files that are checked page by page on use, and those with the digests of their pages."""
_LEFT = {*FILES, *OPTIONAL, BUNDLE_FILE, f"{BUNDLE_FILE}.tmp", f"{TABLES_FILE}.tmp"}
"""Files that a killed process may have left of a bundle."""
PIECE = 16 << 20
"""Number of bytes that are read at a time for checking."""
THREADS = 4


class BundleFile(Strict):
    """A file of a bundle."""

    size: int = Field(ge=0)
    """Size in bytes."""
    sha256: str


class Manifest(Strict):
    """The content of ``bundle.json``."""

    format: int
    files: dict[str, BundleFile]
    """The files of the bundle; nothing else is read."""


class ServedData(Strict):
    """Keys of the run's ``data`` that determine the model's input; see :class:`~dlrm_mtl.data.config.DataConfig`."""

    sparse: list[str]
    sequence: list[str]
    dense: list[str]
    max_sequence_length: int
    dense_limit: float | None
    out_of_range: str
    unbounded: dict[str, UnboundedConfig]
    train_only: dict[str, int | float | None] = Field(default_factory=dict)

    def config(self, path: str) -> DataConfig:
        """The ``data`` part of a configuration with these keys."""
        return validate(DataConfig, {"path": path, **self.model_dump()}, path)


class ServedModel(Strict):
    """The content of ``model.json``."""

    name: str
    """Name of the run."""
    step: int
    """Step of the checkpoint."""
    plugins: list[str]
    """Modules that register parts of the model. They are imported only if the user names them, too."""
    dataset: DatasetSpec
    """Features that the model reads, and labels of the tasks."""
    data: ServedData
    tables: FormatName
    """Format of the rows of all tables."""
    tasks: list[TaskConfig] = Field(min_length=1)
    model: AnyModelConfig
    raw: RawRows | None = None
    """Raw rows and their transforms; None if the bundle scores rows of the prepared data set only."""
    score: ScoreFormula | None = None
    """Score that candidates are ordered by; default: the prediction of the first task."""
    golden: dict[str, tuple[float, float]]
    """Two sums over the golden rows for every part of the model's input, by its name; see :mod:`dlrm_mtl.serve.golden`."""


@contextmanager
def new_bundle(output: str | Path, check: Callable[[Path], object]) -> Iterator[Path]:
    """Temporary folder for the files of a bundle; it is renamed to ``output`` when the block ends.

    Args:
        output: local folder.
        check: called with the complete folder before the renaming; raises if it is not fit for use.

    Raises:
        UserError: the name is taken, or cannot be written.
    """
    if "://" in str(output):
        raise UserError(
            f"{output}: a bundle is written to a local folder; name one with --output, and copy it from there."
        )
    target = Path(output)
    if target.exists():
        raise UserError(f"{output}: this folder exists already; name another with --output, or remove it.")
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for name, digests in PAGED.items():
                write_digests(temporary / name, temporary / digests)
            written = [name for name in (*FILES, *OPTIONAL) if name in FILES or (temporary / name).exists()]
            files = {name: measure(temporary / name) for name in written}
            write_whole(temporary / BUNDLE_FILE, Manifest(format=FORMAT, files=files).model_dump_json(indent=1))
            check(temporary)
            os.rename(temporary, target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name another place with --output.") from None


def _remove_left(folder: Path) -> None:
    """Remove the remains of an export that was killed, and nothing else."""
    if folder.exists():
        if not folder.is_dir() or set(os.listdir(folder)) - _LEFT:
            raise UserError(f"{folder}: this name is needed while the bundle is written, and taken; remove it.")
        shutil.rmtree(folder)


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file of a bundle, and flush it to the disk."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def measure(path: Path) -> BundleFile:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return BundleFile(size=size, sha256=digest.hexdigest())


def check_bundle(folder: Path) -> str:
    """Check the bundle in ``folder``: every byte, but of the files in :data:`PAGED` only the size.

    Returns:
        The bundle's version, the first 16 digits of a SHA-256 over all of it.

    Raises:
        UserError: there is no bundle, its format is unknown, or a byte was changed; the file is named.
    """
    place = folder / BUNDLE_FILE
    try:
        text = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: there is no bundle here; name the folder that `dlrm-mtl export` wrote, which holds {BUNDLE_FILE}."
        ) from None
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}).") from None
    content = parse_mapping(text, place, REMEDY)
    if content.get("format") != FORMAT or isinstance(content.get("format"), bool):
        raise UserError(
            f"{place}: this bundle has the format {content.get('format')!r} and this version of dlrm-mtl reads {FORMAT}; "
            "export the run again."
        )
    manifest = validate(Manifest, content, str(place))
    for name in FILES:
        if name not in manifest.files:
            raise UserError(f"{place}: does not name {name}, which every bundle has; {REMEDY}.")
    for name in manifest.files:
        if name not in (*FILES, *OPTIONAL):
            raise UserError(
                f"{place}: names {name}, which this version of dlrm-mtl does not know; use the one that exported it."
            )
    for name in OPTIONAL:
        if name not in manifest.files and (folder / name).exists():
            raise UserError(f"{folder / name}: is not one of the files that {BUNDLE_FILE} lists; {REMEDY}.")

    def check(name: str) -> None:
        expected = manifest.files[name]
        try:
            size = (folder / name).stat().st_size
            if size != expected.size:
                raise UserError(f"{folder / name}: has {size:,} bytes instead of {expected.size:,}; {REMEDY}.")
            if name in PAGED:
                if manifest.files[PAGED[name]].size != digests_size(size):
                    raise UserError(f"{folder / PAGED[name]}: does not fit {name}; {REMEDY}.")
            elif measure(folder / name) != expected:
                raise UserError(f"{folder / name}: does not have its checksum; {REMEDY}.")
        except FileNotFoundError:
            raise UserError(f"{folder / name}: is missing; {REMEDY}.") from None
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror}).") from None

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(check, manifest.files):
            pass
    return hashlib.sha256(text).hexdigest()[:16]


def verify_bundle(folder: Path) -> tuple[str, int]:
    """Check every byte of the bundle in ``folder``, also of the files in :data:`PAGED`; return its version and size in bytes.

    Raises:
        UserError: as :func:`check_bundle`, and if a page was changed.
    """
    version = check_bundle(folder)
    for name, digests in PAGED.items():
        file = PagedFile(folder / name, folder / digests)
        file.check(0, len(file.content))
    names = [name for name in (*FILES, *OPTIONAL) if (folder / name).exists()]
    return version, sum((folder / name).stat().st_size for name in names)


def read_model(folder: Path, plugins: list[str]) -> ServedModel:
    """Content of ``model.json``.

    Args:
        folder: folder of the bundle, whose bytes have been checked.
        plugins: modules that the user trusts; the bundle's own list is not followed.

    Raises:
        UserError: the model has parts that no module in ``plugins`` registers.
    """
    place = folder / MODEL_FILE
    content = parse_mapping(place.read_bytes(), place, REMEDY)
    load_plugins(plugins, "plugins")
    missing = [module for module in content.get("plugins", []) if module not in plugins]
    if missing:
        raise UserError(
            f"{place}: the model uses parts of the module {missing[0]!r}, which runs when it is imported; name it as a plugin "
            "if you trust it."
        )
    rebuild(ServedModel)
    return validate(ServedModel, content, str(place))
