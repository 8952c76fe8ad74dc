"""Checks that all hosts of a job see the same files, and write to the same folder. Every process must call each function."""

from __future__ import annotations

import hashlib
import os
import uuid

import pyarrow as pa
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only, gather_objects
from dlrm_mtl.storage.filesystems import first_line, is_local, locate

PROBE = ".dlrm-mtl-doctor"
"""Start of the names of files that are written and removed."""


def check_input(place: str, host: str, leads: bool) -> tuple[str, str]:
    """Compare the files at ``place`` on all hosts; a sentence on what is there, and one on a problem, if any.

    Args:
        place: file or folder, path or URI.
        host: name of this host.
        leads: True on the process that looks for its host.
    """
    files: dict[str, int] = {}
    error = ""
    if leads:
        try:
            files = _files(place)
        except UserError as mistake:
            error = f"{host}: {mistake}"
    for text in gather_objects(error):
        if text:
            return "", text
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest() if leads else ""
    seen = f"{place}: {len(files):,} files, {sum(files.values()) / 1e6:,.1f} MB, the same on every host"
    if len(set(gather_objects(digest)) - {""}) == 1:
        return seen, ""
    reference = first_process_only(lambda: (host, files))
    differences = gather_objects(_difference(place, host, files, *reference) if leads else "")
    return "", next(text for text in differences if text)


def _files(place: str) -> dict[str, int]:
    """Sizes of the files at ``place`` by their names below it."""
    filesystem, root = locate(place)
    try:
        here = filesystem.get_file_info(root)
        if here.type == fs.FileType.File:
            return {"": here.size}
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: cannot be read ({first_line(error)}); check the path and its storage.") from None
    return {
        info.path[len(root) :].lstrip("/"): info.size
        for info in infos
        if info.type == fs.FileType.File and not info.base_name.startswith(PROBE)
    }


def _difference(place: str, host: str, files: dict[str, int], first: str, reference: dict[str, int]) -> str:
    for name in sorted({*files, *reference}):
        was, own = reference.get(name), files.get(name)
        if own != was:
            at = f"{place.rstrip('/')}/{name}" if name else place
            here, there = (f"{size:,} bytes" if size is not None else "missing" for size in (own, was))
            return f"{at}: {here} on {host} and {there} on {first}; give all hosts the same files."
    return ""


def check_output(place: str, host: str, leads: bool) -> tuple[str, str]:
    """Check that every host can write to ``place``, and sees what the first one writes; see :func:`check_input`.

    A folder that does not exist is left to be made: the nearest one above it is tried.
    """
    token = first_process_only(lambda: uuid.uuid4().hex)
    first = first_process_only(lambda: host)
    own, problem = f"{PROBE}-{token}-{uuid.uuid4().hex[:8]}", ""
    filesystem, root = locate(place)
    while is_local(filesystem) and not os.path.isdir(root) and os.path.dirname(os.path.abspath(root)) != root:
        root = os.path.dirname(os.path.abspath(root))
    try:
        if leads:
            problem = _write(filesystem, f"{root}/{own}", place, host)
        probes = gather_objects(own)  # and from here on all files are written
        if leads and not problem and not _is_there(filesystem, f"{root}/{probes[0]}"):
            problem = (
                f"{place}: what {first} writes there is not seen on {host}; name a folder on storage that all share."
            )
        problems = [text for text in gather_objects(problem) if text]
    finally:
        if leads:
            _remove(filesystem, f"{root}/{own}")
    return ("", problems[0]) if problems else (f"{place}: every host can write there, and sees what others write", "")


def _write(filesystem: fs.FileSystem, path: str, place: str, host: str) -> str:
    try:
        with filesystem.open_output_stream(path) as file:
            file.write(b"written by dlrm-mtl doctor; may be removed\n")
    except (OSError, pa.ArrowException) as error:
        return f"{place}: {host} cannot write there ({first_line(error)}); correct the permissions or the path."
    return ""


def _is_there(filesystem: fs.FileSystem, path: str) -> bool:
    try:
        return filesystem.get_file_info(path).type == fs.FileType.File
    except (OSError, pa.ArrowException):
        return False


def _remove(filesystem: fs.FileSystem, path: str) -> None:
    if _is_there(filesystem, path):
        filesystem.delete_file(path)
