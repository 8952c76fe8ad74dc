"""Bodies of requests and answers as Arrow IPC streams.

Arrow's reader trusts its input. A stream from a client may name offsets beyond its buffers, claim more values than it holds,
or grow without bound when it is decompressed, so all of this is checked before a value is read.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from dlrm_mtl.data.file_checks import is_list
from dlrm_mtl.serve.http.limits import RefusedRequest

ARROW_TYPE = "application/vnd.apache.arrow.stream"
"""Media type of Arrow IPC streams."""


def read_table(body: bytes, columns: Collection[str], rows: int) -> pa.Table:
    """The table in ``body``, with those of its columns that are named in ``columns``; buffers are not copied.

    Args:
        body: an Arrow IPC stream without compression.
        columns: names of columns to keep.
        rows: largest number of rows.

    Raises:
        RefusedRequest: the stream is damaged, compressed, has too many rows, or columns of a form that could grow.
    """
    try:
        _refuse_compressed(body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            kept = [number for number, name in enumerate(reader.schema.names) if name in columns]
            batches, count = [], 0
            for batch in reader:
                count += batch.num_rows
                if count > rows:
                    raise RefusedRequest(413, f"body: has more than {rows:,} rows; send fewer in a request.")
                batches.append(batch.select(kept))
            schema = pa.schema([reader.schema.field(number) for number in kept], reader.schema.metadata)
        table = pa.Table.from_batches(batches, schema)
        for batch in batches:
            batch.validate(full=True)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                _check_size(name, column, len(body))
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, struct.error, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RefusedRequest(400, f"body: is no Arrow stream that can be read ({reason}); correct it.") from None
    return table


def _check_size(name: str, column: pa.Array, size: int) -> None:
    """Refuse a column whose values take more memory than a stream of ``size`` bytes can hold."""
    type_ = column.type
    if pa.types.is_dictionary(type_) and not pa.types.is_primitive(type_.value_type):
        raise RefusedRequest(
            400, f"body: column {name!r} is a dictionary of {type_.value_type}; send its plain values."
        )
    plain = pa.types.is_primitive(type_) or pa.types.is_null(type_) or pa.types.is_dictionary(type_)
    if plain or pa.types.is_decimal(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return
    values = column.values if is_list(type_) else None
    inner = None if values is None else values.type
    if values is None or not (pa.types.is_primitive(inner) or pa.types.is_null(inner) or pa.types.is_string(inner)):
        raise RefusedRequest(400, f"body: column {name!r} has type {type_}; send numbers, or lists of them.")
    if len(values) > size:
        raise RefusedRequest(400, f"body: column {name!r} claims {len(values):,} values in {size:,} bytes; correct it.")


def _refuse_compressed(body: bytes) -> None:
    """Refuse a stream with compressed batches; raises struct.error or IndexError if it is no stream."""
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if _is_compressed(message.metadata.to_pybytes(), message.type):
            raise RefusedRequest(
                400, "body: its batches are compressed, which could grow without bound; write them without compression."
            )


_HEADER, _DATA, _COMPRESSION = 2, 1, 3
"""Numbers of Message.header, DictionaryBatch.data and RecordBatch.compression in Arrow's Message.fbs."""


def _is_compressed(metadata: bytes, kind: str) -> bool:
    """True if a message's flatbuffer names a compression of its body. pyarrow does not tell before it decompresses."""
    if kind not in ("record batch", "dictionary"):
        return False
    table = _field(metadata, _offset(metadata, 0), _HEADER)
    if table and kind == "dictionary":
        table = _field(metadata, table, _DATA)
    return bool(table and _slot(metadata, table, _COMPRESSION))


def _offset(metadata: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", metadata, at)[0])


def _slot(metadata: bytes, table: int, field: int) -> int:
    """Place of a field of a flatbuffer's table; 0 if it is absent."""
    fields = table - int(struct.unpack_from("<i", metadata, table)[0])
    (size,) = struct.unpack_from("<H", metadata, fields)
    slot = 4 + 2 * field
    return table + offset if slot < size and (offset := struct.unpack_from("<H", metadata, fields + slot)[0]) else 0


def _field(metadata: bytes, table: int, field: int) -> int:
    """Place of a table that is a field of another one; 0 if it is absent."""
    slot = _slot(metadata, table, field)
    return _offset(metadata, slot) if slot else 0


def write_table(columns: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """An Arrow IPC stream of one batch.

    Args:
        columns: arrays [N] by name.
        metadata: metadata of the schema.
    """
    table = pa.table({name: pa.array(values) for name, values in columns.items()}).replace_schema_metadata(
        dict(metadata)
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
