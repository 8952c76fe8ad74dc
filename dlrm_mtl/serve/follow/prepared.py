"""Bundles made of published versions in a folder of this machine: tables of the base, and the rows that have changed since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FORMATS, FormatName
from dlrm_mtl.serve.bundle import (
    BUNDLE_FILE,
    CHANGES_FILE,
    DENSE_FILE,
    FORMAT,
    GOLDEN_FILE,
    MODEL_FILE,
    BundleFile,
    Manifest,
    check_bundle,
    measure,
    read_model,
    write_file,
)
from dlrm_mtl.serve.changes import TableChanges, read_changes, write_changes
from dlrm_mtl.serve.follow.assemble import golden_scores, write_version
from dlrm_mtl.serve.follow.places import locked
from dlrm_mtl.serve.golden import read_golden, read_raw_golden, write_golden
from dlrm_mtl.serve.tensor_files import write_tensors
from dlrm_mtl.storage.output import sync_folder, write_whole
from dlrm_mtl.storage.run_store import RunStore, StorageError
from dlrm_mtl.versions.content import Delta, read_delta
from dlrm_mtl.versions.format import REMEDY, StoredVersion

OWN_FILES = (MODEL_FILE, DENSE_FILE, GOLDEN_FILE, CHANGES_FILE)
"""Files that a delta has of its own; it shares the others with its base, by links."""
KEPT = 3
"""Number of prepared versions that are kept besides the one that was just made: other processes may be loading them."""
IDENTITY_FILE = "chain"


def prepare(
    cache: Path,
    store: RunStore,
    versions: Sequence[StoredVersion],
    plugins: Sequence[str],
    format: FormatName = "fp32",
) -> Path:
    """Folder of the bundle of the last of ``versions``, which is made if needed; one process at a time makes one.

    Args:
        cache: folder for bundles, all of one format.
        store: files of the versions.
        versions: a base, and the deltas that follow it.
        plugins: modules with parts of the model that the user trusts.
        format: format of the tables.

    Raises:
        UserError: a file of a version is missing or damaged, the format cannot hold a value, or ``cache`` cannot be written to.
    """
    folder = cache / versions[-1].id
    if (folder / BUNDLE_FILE).exists():
        return folder
    with locked(cache):
        if (folder / BUNDLE_FILE).exists():
            return folder
        try:
            _make(cache, store, versions, plugins, format)
            _clear(cache, versions)
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be written ({error.strerror}); make room, or name another folder with --cache."
            ) from None
    return folder


def _make(
    cache: Path, store: RunStore, versions: Sequence[StoredVersion], plugins: Sequence[str], format: FormatName
) -> None:
    folders = [cache / stored.id for stored in versions]
    made = [number for number, folder in enumerate(folders) if (folder / BUNDLE_FILE).exists()]
    if not made:
        _make_base(store, versions[0], folders[0], plugins, format)
    start = made[-1] if made else 0
    if start == len(versions) - 1:
        return
    before = folders[start]
    changes = read_changes(before / CHANGES_FILE)
    deltas = [read_delta(store, stored) for stored in versions[start + 1 :]]
    for delta in deltas:
        _check_values(delta, format)
        changes = changes.then(TableChanges(delta.tables, delta.ids))
    last = versions[-1]
    temporary = cache / f"{last.id}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    check_bundle(before)
    manifest = Manifest.model_validate_json((before / BUNDLE_FILE).read_bytes())
    served = read_model(before, list(plugins))
    served = served.model_copy(update={"step": last.version.step, "golden": last.version.golden_sums})
    dense = dict(deltas[-1].dense)
    write_file(temporary / DENSE_FILE, lambda file: write_tensors(file, dense, served.name, served.step))
    write_changes(temporary / CHANGES_FILE, changes, served.name, served.step)
    files: dict[str, BundleFile] = {}
    for name, known in manifest.files.items():
        if name not in OWN_FILES:
            os.link(before / name, temporary / name)
            files[name] = known
    rows, _ = read_golden(before / GOLDEN_FILE)
    scores = {task.name: deltas[-1].scores[:, number].numpy() for number, task in enumerate(served.tasks)}
    if format != "fp32":
        scores, sums = golden_scores(temporary, served, rows, _of_golden(last.version.golden_batches, len(rows)))
        served = served.model_copy(update={"golden": sums})
    write_golden(temporary / GOLDEN_FILE, rows, scores, read_raw_golden(before / GOLDEN_FILE))
    write_whole(temporary / MODEL_FILE, served.model_dump_json(indent=1) + "\n")
    for name in OWN_FILES:
        files[name] = measure(temporary / name)
    write_whole(temporary / BUNDLE_FILE, Manifest(format=FORMAT, files=files).model_dump_json(indent=1))
    os.rename(temporary, cache / last.id)
    sync_folder(cache)


def _check_values(delta: Delta, format: FormatName) -> None:
    """Check that the changed rows can be encoded, which is done when they are loaded; raises :class:`UserError`."""
    for table, changed in delta.tables.items():
        try:
            FORMATS[format].encode(changed.values)
        except ValueError as error:
            raise UserError(f"--tables {format}: changed rows of table {table}: {error}; choose fp32.") from None


def _of_golden(sizes: Sequence[int], rows: int) -> list[int]:
    """Numbers of rows to score at a time, without the rows beyond the golden ones."""
    found: list[int] = []
    for size in sizes:
        found.append(min(size, rows - sum(found)))
    return [size for size in found if size]


def _make_base(store: RunStore, base: StoredVersion, folder: Path, plugins: Sequence[str], format: FormatName) -> None:
    """Make the bundle of a base. A damaged one is remembered: each delta that follows would read all of it once more."""
    refused = folder.with_name(f"{folder.name}.refused")
    if refused.exists():
        raise UserError(refused.read_text())
    if folder.exists():
        shutil.rmtree(folder)
    try:
        write_version(store, [base], folder, plugins, format)
    except UserError as error:
        if REMEDY in str(error):
            write_whole(refused, str(error))
        raise


def _clear(cache: Path, versions: Sequence[StoredVersion]) -> None:
    """Remove bundles of older versions."""
    last = versions[-1].version.number
    for path in cache.iterdir():
        number, _, rest = path.name.partition("-")
        if number.isdecimal() and rest and int(number) < last - KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def pin(cache: Path, chain: str, place: str) -> None:
    """Remember that ``cache`` holds versions of ``chain``.

    Raises:
        UserError: it holds those of another one.
    """
    with locked(cache):
        path = cache / IDENTITY_FILE
        if not path.exists():
            write_whole(path, chain)
        elif path.read_text() != chain:
            raise UserError(
                f"{place}: holds the versions of another run than those served so far; to go over to it, start the server with "
                f"another --cache, or remove {cache}."
            )
