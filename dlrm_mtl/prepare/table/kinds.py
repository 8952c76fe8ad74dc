"""Refusing a file that is not a table, by its first bytes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.file_kinds import GZIP, LOOKED_AT, PARQUET, is_text, kind_of


def refuse_other_kinds(path: Path, *, parquet: bool) -> None:
    """Refuse a file that is not a table of text, or not Parquet.

    Args:
        path: the file.
        parquet: True if it must be Parquet.

    Raises:
        UserError: its first bytes show another kind, or its gzip content does; with the remedy.
    """
    start = _start(path)
    inside = b""
    if start.startswith(GZIP):
        if parquet:
            raise UserError(f"{path}: is compressed by gzip and no Parquet file; decompress it: gunzip FILE.")
        inside = _unpacked(path)
    what, remedy = kind_of(inside or start)
    if what == "" or (parquet and start.startswith(PARQUET)):
        if parquet and start and not start.startswith(PARQUET) and is_text(start):
            raise UserError(f"{path}: is text and no Parquet file; set source.format to csv, or name it .csv.")
        return
    if inside:
        raise UserError(f"{path}: holds, compressed by gzip, {what}, not a CSV file; {remedy}.")
    raise UserError(f"{path}: is {what}, not a {'Parquet' if parquet else 'CSV'} file; {remedy}.")


def starts_as_parquet(path: Path) -> bool:
    """Return True if a file begins like a Parquet file, whatever its name."""
    return _start(path).startswith(PARQUET)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(LOOKED_AT)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions.") from None


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read(LOOKED_AT)
    except (OSError, EOFError, zlib.error):
        return b""  # the mistake is reported when the file is read
