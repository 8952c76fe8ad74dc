"""Values to ids: by frequency over the training rows, or by a fixed hash. Id 0 is unknown and null.

The hash is the same everywhere: the first 15 hexadecimal digits of an md5 sum, 60 bits, as an integer. Every database has
md5, and 60 bits fit signed 64-bit integers. The text is ``SEED:FEATURE:VALUE`` in UTF-8, so that two features, or two
seeds, have different collisions::

    id = 1 + (first 15 hex digits of md5("0:user:ann")) mod (size - 1)        from 1 to size - 1
    DuckDB     1 + ('0x' || left(md5('0:user:' || value), 15))::BIGINT % (size - 1)
    Spark      1 + cast(conv(left(md5(concat('0:user:', value)), 15), 16, 10) as bigint) % (size - 1)
    BigQuery   1 + mod(cast(concat('0x', left(to_hex(md5(concat('0:user:', value))), 15)) as int64), size - 1)
    Postgres   1 + ('x' || lpad(left(md5('0:user:' || value), 15), 16, '0'))::bit(64)::bigint % (size - 1)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from dlrm_mtl.core.sql import quote

if TYPE_CHECKING:
    import duckdb

HASH_BITS = 60
"""Number of bits of the hash."""


def hash_text(text: str) -> int:
    """The first 15 hexadecimal digits of the md5 sum of ``text`` in UTF-8, as an integer from 0 to 2**60 - 1."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:15], 16)


def hash_text_sql(text: str) -> str:
    """SQL for :func:`hash_text` of the expression ``text``; null stays null."""
    return f"CAST('0x' || left(md5(CAST({text} AS VARCHAR)), 15) AS BIGINT)"


def hash_ids(
    values: Sequence[str | int | None] | pa.Array, size: int, *, feature: str, seed: int = 0
) -> NDArray[np.int64]:
    """Ids of ``values``, [number of values] int64 from 0 to ``size`` - 1; null becomes 0.

    Integers count as their decimal digits. Each distinct value is hashed once.

    Args:
        values: texts, integers or nulls.
        size: the vocabulary size, 2 or more.
        feature: name of the feature; features that share a vocabulary use one name.
        seed: seed of the hash.

    Raises:
        TypeError: if the values are neither texts nor integers: other types have no text that all systems agree on.
    """
    _check_size(size)
    array = values if isinstance(values, pa.Array) else pa.array(_texts(values), pa.large_string())
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_integer(array.type) or pt.is_null(array.type):
        array = array.cast(pa.large_string())
    elif not (pt.is_string(array.type) or pt.is_large_string(array.type)):
        raise TypeError(f"values of type {array.type} cannot be hashed to ids; convert them to text or integers.")
    encoded = pc.dictionary_encode(array)
    start = f"{seed}:{feature}:"
    by_value = [1 + hash_text(start + value) % (size - 1) for value in encoded.dictionary.to_pylist()]
    ids = np.asarray([*by_value, 0], np.int64)
    return ids[pc.fill_null(encoded.indices, len(by_value)).to_numpy(zero_copy_only=False)]


def hash_sql(value: str, size: int, *, feature: str, seed: int = 0) -> str:
    """SQL of the id of the expression ``value`` (text or integer), equal to that of :func:`hash_ids`."""
    _check_size(size)
    start = quote(f"{seed}:{feature}:")
    return f"coalesce(1 + {hash_text_sql(f'{start} || {value}')} % {size - 1}, 0)"


def frequency_vocabulary(
    connection: duckdb.DuckDBPyConnection, table: str, values: str, *, min_count: int = 1, max_size: int | None = None
) -> int:
    """Number the values of the query ``values`` (one column) in ``table`` (id, value, count) and return the vocabulary size.

    Ids are in the order of descending frequency, then of value, from 1 to the vocabulary size - 1. Values that occur fewer
    than ``min_count`` times get no id, nor do those beyond ``max_size`` ids (including 0).
    """
    limit = "" if max_size is None else f"LIMIT {max_size - 1}"
    connection.execute(
        f"""CREATE TABLE {table} AS
        SELECT CAST(row_number() OVER (ORDER BY count DESC, value) AS INTEGER) AS id, value, count
        FROM (SELECT value, count(*) AS count FROM (SELECT CAST(value AS VARCHAR) AS value FROM ({values}) AS t(value))
              WHERE value IS NOT NULL GROUP BY value HAVING count(*) >= {min_count} ORDER BY count DESC, value {limit})
        ORDER BY id"""
    )
    return int(one_row(connection, f"SELECT count(*) + 1 FROM {table}")[0])


def vocabulary_fingerprint(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """A text that changes with any value or id of the vocabulary in ``table`` (id, value), not with the order of its rows."""
    query = f"SELECT count(*), coalesce(bit_xor(md5_number(id || ':' || value)), 0) FROM {table}"
    values, digest = one_row(connection, query)
    return f"{values} values, {digest:032x}"


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The only row of a query's result."""
    (row,) = connection.execute(query).fetchall()
    return tuple(row)


def _check_size(size: int) -> None:
    if size < 2:
        raise ValueError(f"a vocabulary of size {size} has no id for a value, as id 0 is unknown; make it 2 or more.")


def _texts(values: Sequence[str | int | None]) -> list[str | None]:
    odd = next((value for value in values if not (value is None or isinstance(value, (str, int)))), None)
    if odd is not None or any(isinstance(value, bool) for value in values):
        raise TypeError(f"{odd!r} cannot be hashed to an id; convert it to text or an integer.")
    return [None if value is None else str(value) for value in values]
