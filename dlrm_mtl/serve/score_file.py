"""Scoring of the rows of a file, in constant memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args

import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import open_files
from dlrm_mtl.data.parquet_guard import unreadable
from dlrm_mtl.serve.encode import Policies, Policy
from dlrm_mtl.serve.rows import Where
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.storage.filesystems import first_line, locate
from dlrm_mtl.storage.table_output import table_output

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")

Batch = tuple[Any, list[pa.Array] | list[pa.ChunkedArray], Where]
"""Rows, their carried columns, and their origin."""
logger = logging.getLogger(__name__)


def policies_of(options: Sequence[str], option: str) -> Policies | None:
    """Policies from options such as ``default`` and ``user_id=unknown``; None without any.

    Raises:
        UserError: an option has another form.
    """
    found: dict[str, Policy] = {}
    for text in options:
        name, _, policy = text.rpartition("=")
        if policy not in get_args(Policy):
            raise UserError(f"{option} {text}: {policy!r} is not a policy; choose refuse, default or unknown.")
        found[name or "*"] = cast(Policy, policy)
    return found or None


def score_file(
    scorer: Scorer, source: str, target: str, carry: Sequence[str] = (), batch_size: int = 8192, raw: bool = False
) -> int:
    """Write the scores of every row of ``source``, in its order.

    Args:
        scorer: the model.
        source: Parquet file or folder, or a file of JSON lines, by its ending; path or URI.
        target: file to write; it appears when it is complete. Its ending gives the format: ``.parquet``, ``.csv`` or
            ``.jsonl``, the latter two also with ``.gz``.
        carry: columns of ``source`` to carry over, before the scores.
        batch_size: rows in memory at a time.
        raw: True for predictions before calibration.

    Returns:
        The number of rows.

    Raises:
        UserError: the input or the output cannot be used, or a row is refused.
    """
    twice = sorted(set(scorer.tasks) & set(carry))
    if twice:
        raise UserError(f"--carry {twice[0]}: the scores have a column of this name; leave it out.")
    done = 0
    with table_output(target) as write:
        for rows, carried, where in read_rows(source, list(carry), batch_size):
            scores = scorer.score(rows, where=where, raw=raw)
            columns = [pa.array(scores[task]) for task in scorer.tasks]
            write(pa.table([*carried, *columns], names=[*carry, *scorer.tasks]))
            done += len(rows)
        if not done:
            raise UserError(f"{source}: there are no rows to score; name a file that has some.")
    for what, counts in scorer.counts.items():
        for feature, count in counts.items():
            logger.info("note: feature %r: %s %s", feature, f"{count:,}", _NOTES[what])
    logger.info("%s: %s rows, columns %s", target, f"{done:,}", ", ".join([*carry, *scorer.tasks]))
    return done


def read_rows(source: str, carry: list[str], batch_size: int) -> Iterator[Batch]:
    """Rows of a Parquet file or folder, or of JSON lines, with the columns ``carry``; a batch at a time.

    Raises:
        UserError: the input cannot be read, or lacks a column of ``carry``.
    """
    return (_json_batches if source.endswith(JSON_ENDINGS) else _parquet_batches)(source, carry, batch_size)


_NOTES = {
    "missing": "rows had no such field; the policy for missing fields was applied",
    "unknown": "values or ids were unknown; the policy for unknown ones was applied",
}


def _parquet_batches(source: str, carry: list[str], batch_size: int) -> Iterator[Batch]:
    for file in open_files(*locate(source)):
        for name in carry:
            _expect(name, file.schema.names, file.path)
        first = 0
        try:
            for batch in file.open().iter_batches(batch_size, use_threads=False):
                table = pa.Table.from_batches([batch])
                yield table, [table.column(name) for name in carry], Where(file.path, first)
                first += table.num_rows
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from None


def _json_batches(source: str, carry: list[str], batch_size: int) -> Iterator[Batch]:
    rows: list[dict[str, Any]] = []
    first = 0
    for number, row in enumerate(json_objects(source)):
        for name in carry:
            _expect(name, list(row), f"{source}, row {number}")
        rows.append(row)
        if len(rows) == batch_size:
            yield rows, _carried(rows, carry, source), Where(source, first)
            first, rows = number + 1, []
    if rows:
        yield rows, _carried(rows, carry, source), Where(source, first)


def json_objects(source: str) -> Iterator[dict[str, Any]]:
    """Objects in a file of JSON lines, path or URI; empty lines are left out.

    Raises:
        UserError: the file cannot be read, or a line is no object.
    """
    filesystem, path = locate(source)
    try:
        with filesystem.open_input_stream(path) as stream:
            for number, line in enumerate(_lines(stream)):
                yield _row(line, f"{source}, row {number}")
    except FileNotFoundError:
        raise UserError(f"{source}: there is no such file; check the path.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)}).") from None


def _carried(rows: list[dict[str, Any]], carry: list[str], source: str) -> list[pa.Array]:
    columns = []
    for name in carry:
        try:
            columns.append(pa.array([row[name] for row in rows]))
        except (pa.ArrowException, TypeError) as error:
            raise _mixed(source, name, error) from None
    return columns


def _mixed(source: str, name: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: column {name!r}, to be carried over, has values of several types ({first_line(error)}); write it in one."
    )


def _lines(stream: Any) -> Iterator[bytes]:
    left = b""
    while piece := stream.read(1 << 20):
        *whole, left = (left + piece).split(b"\n")
        yield from (line for line in whole if line.strip())
    if left.strip():
        yield left


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({str(error)[:100]}); write one object on each line.") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: is no JSON object; write one on each line, with the columns' names as keys.")
    return row


def _expect(name: str, names: Sequence[str], place: str) -> None:
    if name not in names:
        raise UserError(f"{place}: column {name!r}, to be carried over, is missing; {suggest(name, names)}.")
