"""Kind of a file by its first bytes, so that errors can name what a file is."""

from __future__ import annotations

import zlib

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"

LOOKED_AT = 512
"""Number of bytes that show the kind of a file."""

_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (PARQUET, "Parquet", "name it .parquet, or set source.format to parquet"),
    (b"PK\x03\x04", "a zip archive", "unpack it, and name what is inside"),
    (b"PK\x05\x06", "an empty zip archive", "name another file"),
    (b"BZh", "compressed by bzip2", "decompress it: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "compressed by xz", "decompress it: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it: unzstd FILE"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it: unlz4 FILE"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by snappy", "decompress it"),
    (b"\x1f\x9d", "compressed by compress", "decompress it: uncompress FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name what is inside"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it, and name what is inside"),
    (b"ORC", "ORC", "write it as Parquet"),
    (b"Obj\x01", "Avro", "write it as Parquet"),
    (b"ARROW1", "Arrow (Feather)", "write it as Parquet: pandas.read_feather(...).to_parquet(...)"),
    (b"FEA1", "Feather", "write it as Parquet: pandas.read_feather(...).to_parquet(...)"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", "write it as Parquet: pandas.read_hdf(...).to_parquet(...)"),
    (b"\x93NUMPY", "a NumPy array", "write it as Parquet or CSV"),
    (b"SQLite format 3\x00", "an SQLite database", "write the table as Parquet or CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", "save the table as CSV"),
    (b"%PDF-", "a PDF", "name another file"),
    (b"\x89PNG", "a picture", "name another file"),
    (b"\xff\xd8\xff", "a picture", "name another file"),
    (b"GIF8", "a picture", "name another file"),
    (b"\x7fELF", "a program", "name another file"),
)
_EXCEL = b"[Content_Types].xml"


def kind_of(start: bytes) -> tuple[str, str]:
    """Kind of a file, and how to make a table of it; both empty for text and for unknown kinds.

    Args:
        start: first bytes of the file, :data:`LOOKED_AT` of them.
    """
    if start.startswith(b"PK\x03\x04") and (_EXCEL in start or b"xl/" in start):
        return "an Excel workbook", "save the table as CSV"
    for signature, what, remedy in _STARTS:
        if start.startswith(signature):
            return what, remedy
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle", "write it as Parquet, as pandas.DataFrame.to_parquet does"
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it, and name what is inside"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b'{"', b'[{"', b"{'", b"[\n", b"{\n", b"{\r\n")):
        return "JSON", "write it as Parquet or CSV: pandas.read_json(...).to_parquet(...)"
    if text.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or XML", "download the file itself"
    if text.lower().startswith(b"@relation"):
        return "ARFF", "write it as CSV: without the lines before the first row"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "fetch the file: git lfs pull"
    return "", ""


def is_text(start: bytes) -> bool:
    """Return True if bytes are those of a text."""
    return b"\0" not in start and sum(byte < 9 or 13 < byte < 32 for byte in start) == 0


def unpacked(start: bytes) -> bytes:
    """First bytes inside a gzip file, from its own first bytes; empty if it is damaged."""
    try:
        return zlib.decompressobj(31).decompress(start)[:LOOKED_AT]
    except zlib.error:
        return b""
