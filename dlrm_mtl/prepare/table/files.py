"""Loading a user's CSV or Parquet files into a DuckDB table on disk, whose rows keep the order of the files."""

from __future__ import annotations

import bisect
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
from pyarrow import fs

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import file_literal, identifier, in_utc, quote
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import open_files
from dlrm_mtl.prepare.common.ids import one_row
from dlrm_mtl.prepare.table.description import SourceConfig
from dlrm_mtl.prepare.table.kinds import refuse_other_kinds
from dlrm_mtl.prepare.table.types import UNTYPED, common_type, loaded_type

HEADER_BYTES = 4_000_000
"""Number of bytes in which the first line is searched."""

DECODED_CHARACTERS = 1 << 20
"""Number of characters that are decoded at a time."""

BLANKS = " \t\u00a0"
"""Characters that `strip` removes."""

LONGEST_NAME = 500
"""Largest number of characters of a column's name."""


@dataclass
class Table:
    """The rows of some files in the DuckDB table ``rows``; ``rowid`` numbers them in the order of the files."""

    connection: duckdb.DuckDBPyConnection
    work: Path
    """Folder for short-lived files."""
    types: dict[str, str] = field(default_factory=dict)
    """DuckDB type of each loaded column, by its name in the files."""
    files: list[Path] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Number of the first row after each file."""
    untyped: set[str] = field(default_factory=set)
    """Columns that are null and untyped in all files so far: they take the type of the next file."""
    single: set[str] = field(default_factory=set)
    """Columns with FLOAT numbers in some file, whatever their loaded type."""
    skipped: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Number of skipped malformed lines, and number of the first one, by file."""
    behind: dict[Path, int] = field(default_factory=dict)
    """Number of the skipped lines that are behind a quote opened by another malformed line, by file."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Format of the files; numbers in texts may have a decimal comma, or separators of thousands."""
    whole: dict[tuple[str, str | None], bool] = field(default_factory=dict)
    """True if all texts, or entries, are whole numbers; by column of texts and separator of its entries."""

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return self.ends[-1] if self.ends else 0

    def column(self, name: str) -> str:
        """SQL name of the column ``name``; names inside DuckDB are numbers, as it ignores case."""
        return f"c{list(self.types).index(name)}"

    def place(self, row: int) -> str:
        """File of a row and the row's number in it, beginning with 1."""
        position = bisect.bisect_right(self.ends, row)
        return f"{self.files[position]}: row {row - (self.ends[position - 1] if position else 0) + 1}"


def load(
    connection: duckdb.DuckDBPyConnection,
    work: Path,
    files: Sequence[Path],
    source: SourceConfig,
    *,
    parquet: bool,
    wanted: Iterable[str] | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Table:
    """Load the columns ``wanted`` (default: all) of ``files`` into the table ``rows`` of ``connection``.

    Columns of CSV files are texts. Texts for null become null. ``limit`` is the largest number of rows. Raises
    :class:`UserError` for files that cannot be read, lack a column, have types that do not fit, or hold no row.
    """
    table = Table(connection, work, source=source)
    names = None if wanted is None else list(dict.fromkeys(wanted))
    load_one = _load_parquet if parquet else _load_csv
    for position, path in enumerate(files):
        progress(position / len(files))
        left = None if limit is None else limit - table.rows
        if left is None or left > 0:
            refuse_other_kinds(path, parquet=parquet)
            load_one(table, path, source, names, left)
            row = one_row(connection, "SELECT count(*) FROM rows")
            table.files.append(path)
            table.ends.append(int(row[0]))
    if table.rows == 0:
        count = sum(number for number, _ in table.skipped.values())
        remedy = "check source.separator, quote and encoding" if count else "write the data there"
        lines = f" ({count} malformed lines were skipped)" if count else ""
        raise UserError(f"{files[0]}: there are no rows{lines}; {remedy}.")
    return table


def read_header(path: Path, source: SourceConfig) -> list[str]:
    """Names of the columns of a CSV file: its first line, or ``source.columns``; raises :class:`UserError`."""
    if not source.header:
        return list(source.columns or [])
    encoding = "utf-8-sig" if source.is_utf8 else source.encoding
    try:
        with open_raw(path) as stream:
            content = stream.read(HEADER_BYTES)
        text = io.TextIOWrapper(io.BytesIO(content), encoding, errors="replace", newline="")
        for _ in range(source.skip):
            text.readline()
        if len(source.separator) == 1:
            lines = csv.reader(
                text,
                delimiter=source.separator,
                quotechar=source.quote,
                skipinitialspace=source.strip and source.separator != " ",
                strict=True,
            )
            names = next(lines, [])
        else:
            mark = source.quote or ""
            names = [name.strip(mark) for name in text.readline().rstrip("\r\n").split(source.separator)]
    except UnicodeError:
        raise UserError(f"{path}: line 1 is not {source.encoding}; {_ENCODING}.") from None
    except csv.Error as error:
        raise UserError(f"{path}: line 1 cannot be read ({error}); check source.separator and source.quote.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); it may be truncated or damaged.") from None
    if source.strip:
        names = [name.strip(BLANKS) for name in names]
    if any("\ufffd" in name for name in names):
        raise UserError(f"{path}: line 1 is not {source.encoding}; {_ENCODING}.")
    if not any(names):
        raise UserError(
            f"{path}: line 1 is empty where the names of the columns are expected; add them, or set source.header."
        )
    odd = next((name for name in names if not name.isprintable() or len(name) > LONGEST_NAME), None)
    if odd is not None:
        raise UserError(
            f"{path}: line 1 has {odd[:40]!r}, which cannot name a column; correct it, or check source.separator and quote."
        )
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{path}: line 1 names column {repeated!r} more than once; rename one.")
    return names


def column_names(path: Path, source: SourceConfig, *, parquet: bool) -> list[str]:
    """Names of the columns of a file; raises :class:`UserError` if it cannot be read."""
    refuse_other_kinds(path, parquet=parquet)
    if not parquet:
        return read_header(path, source)
    (file,) = open_files(fs.LocalFileSystem(), str(path))
    return [str(name) for name in file.schema.names]


def csv_options(source: SourceConfig, columns: Sequence[str], path: Path) -> str:
    """Arguments of DuckDB's ``read_csv`` after the path; nothing is guessed."""
    declared = ", ".join(f"{quote(column)}: 'VARCHAR'" for column in columns)
    mark = quote(source.quote or "")
    nulls = ", ".join(quote(text) for text in source.nulls)
    options = {
        "auto_detect": "false",
        "columns": f"{{{declared}}}",
        "delim": quote(source.separator),
        "quote": mark,
        "escape": mark,
        "header": str(source.header).lower(),
        "compression": "'gzip'" if _is_gzip(path) else "'none'",
    }
    if source.skip:
        options["skip"] = str(source.skip)
    if nulls:
        options["nullstr"] = f"[{nulls}]"
    return ", ".join(f"{key} = {value}" for key, value in options.items())


def _load_csv(table: Table, path: Path, source: SourceConfig, wanted: list[str] | None, limit: int | None) -> None:
    names = read_header(path, source)
    chosen = _chosen(table, path, names, wanted)
    if not table.types:
        table.types = dict.fromkeys(chosen, "VARCHAR")
        table.connection.execute(f"CREATE TABLE rows ({', '.join(f'{table.column(name)} VARCHAR' for name in chosen)})")
    columns = [f"f{position}" for position in range(len(names))]
    selected = ", ".join(_read(columns[names.index(name)], source) for name in table.types)
    skip = source.malformed == "skip"
    readable = path if source.is_utf8 else _decoded(path, source, table.work / "decoded.csv")
    options = csv_options(source, columns, readable) + (", store_rejects = true" if skip else "")
    scan = f"read_csv({file_literal(readable)}, {options})"
    until = "" if limit is None else f" LIMIT {limit}"
    try:
        table.connection.execute(f"INSERT INTO rows SELECT {selected} FROM {scan}{until}")
        if skip:
            (count, first), *_ = table.connection.execute(
                "SELECT count(DISTINCT line), min(line) FROM reject_errors"
            ).fetchall()
            table.connection.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
            if count:
                lost = count if limit is not None else _lost_lines(table, readable, source, scan, columns)
                table.skipped[path] = (max(count, lost), first)
                table.behind[path] = max(0, lost - count)
    except (duckdb.InvalidInputException, duckdb.ConversionException, duckdb.InvalidTypeException) as error:
        raise _malformed(path, str(error), source) from None
    except duckdb.IOException as error:
        if "GZIP" not in str(error).upper() and not about(readable, error):
            raise
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); it may be truncated or damaged.") from None


def _read(column: str, source: SourceConfig) -> str:
    """SQL of a column of a CSV file, without surrounding blanks if ``source.strip`` is set."""
    if not source.strip:
        return column
    stripped = f"trim({column}, {quote(BLANKS)})"
    nulls = ", ".join(quote(text) for text in source.nulls)
    return f"CASE WHEN {stripped} NOT IN ({nulls}) THEN {stripped} END" if nulls else stripped


def _decoded(path: Path, source: SourceConfig, target: Path) -> Path:
    """Write ``path`` to ``target`` in UTF-8, uncompressed: DuckDB supports few encodings."""
    line = 1
    with open(target, "w", encoding="utf-8", errors="surrogatepass", newline="") as out:
        try:
            with open_raw(path) as raw, io.TextIOWrapper(raw, source.encoding, newline="") as stream:
                while piece := stream.read(DECODED_CHARACTERS):
                    line += piece.count("\n")
                    out.write(piece)
        except UnicodeError:
            raise UserError(f"{path}: after line {line} it is not {source.encoding}; {_ENCODING}.") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: cannot be read ({error}); it may be truncated or damaged.") from None
    return target


_ENCODING = "set source.encoding in the description (cp1252 is usual on Western Windows; latin-1 reads any bytes)"


def _load_parquet(table: Table, path: Path, source: SourceConfig, wanted: list[str] | None, limit: int | None) -> None:
    (file,) = open_files(fs.LocalFileSystem(), str(path))
    names = [str(name) for name in file.schema.names]
    chosen = _chosen(table, path, names, wanted)
    twice = next((name for name in chosen if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: there are {names.count(twice)} columns {twice!r}; rename or remove one.")
    lower = [name.lower() for name in names]
    same = next((name for name in chosen if lower.count(name.lower()) > 1), None)
    if same is not None:
        raise UserError(f"{path}: two columns are called {same!r} but for capitals; rename one of them.")
    scan = f"read_parquet({file_literal(path)}, hive_partitioning = false)"
    columns = ", ".join(identifier(name) for name in (table.types or chosen))
    try:
        described = table.connection.execute(f"DESCRIBE SELECT {columns} FROM {scan}").fetchall()
        found = {name: str(row[1]) for name, row in zip(table.types or chosen, described, strict=True)}
        types = {name: loaded_type(type_) for name, type_ in found.items()}
        if not table.types:
            table.types = dict(types)
            table.untyped = {name for name, type_ in found.items() if UNTYPED in type_}
            declared = ", ".join(f"{table.column(name)} {type_}" for name, type_ in types.items())
            table.connection.execute(f"CREATE TABLE rows ({declared})")
        for name, type_ in types.items():
            if UNTYPED not in found[name]:
                _unify(table, path, name, type_)
        selected = ", ".join(_loaded(identifier(name), type_, source.nulls) for name, type_ in found.items())
        until = "" if limit is None else f" LIMIT {limit}"
        table.connection.execute(f"INSERT INTO rows SELECT {selected} FROM {scan}{until}")
    except (duckdb.Error, pa.ArrowException) as error:
        if isinstance(error, duckdb.IOException) and not about(path, error):
            raise
        raise UserError(
            f"{path}: cannot be read as Parquet ({_first_line(error)}); it may be truncated or damaged: write it again."
        ) from None


def _unify(table: Table, path: Path, name: str, type_: str) -> None:
    """Let a column of ``table`` also hold values of ``type_``, its type in the file ``path``.

    Raises:
        UserError: no type holds these values and those of the earlier files.
    """
    connection, column, before = table.connection, table.column(name), table.types[name]
    if type_.startswith("FLOAT"):
        table.single.add(name)
    if name in table.untyped:
        table.untyped.remove(name)
        if type_ != before:
            connection.execute(f"ALTER TABLE rows ALTER {column} SET DATA TYPE {type_} USING CAST(NULL AS {type_})")
            table.types[name] = type_
        return
    if type_ == before:
        return
    common = common_type(connection, before, type_)
    if common is None:
        first = table.files[0]
        raise UserError(f"{path}: column {name!r} has type {type_}, and {before} in {first}; write both alike.")
    if common != before:
        connection.execute(f"ALTER TABLE rows ALTER {column} SET DATA TYPE {common}")
        table.types[name] = common


def _loaded(column: str, type_: str, nulls: Sequence[str]) -> str:
    """SQL of a loaded column: NaN and the texts ``nulls`` are null, and times are in UTC."""
    if UNTYPED in type_:
        return column
    if type_ == "VARCHAR" and nulls:
        return f"CASE WHEN {column} NOT IN ({', '.join(quote(text) for text in nulls)}) THEN {column} END"
    if type_ in ("FLOAT", "DOUBLE"):
        # Not by isnan: DuckDB assumes false if a footer's statistics, which ignore NaN, are finite.
        return f"CASE WHEN isfinite({column}) OR isinf({column}) THEN {column} END"
    if type_ in ("FLOAT[]", "DOUBLE[]"):
        return f"list_filter({column}, lambda x: isfinite(x) OR isinf(x))"
    return in_utc(column) if loaded_type(type_) != type_ else column


def about(path: Path, error: Exception) -> bool:
    """Return True if DuckDB's error names the file ``path``, which it got as :func:`file_literal`."""
    return any(name in str(error) for name in (str(path), file_literal(path)[1:-1].replace("''", "'")))


def _lost_lines(table: Table, path: Path, source: SourceConfig, scan: str, columns: Sequence[str]) -> int:
    """Number of lines of a CSV file that are in no row: all that are not empty, minus the header and those of the rows."""
    lines = 0
    with open_raw(path) as stream:
        for _ in range(source.skip):
            stream.readline()
        rest = b""
        while piece := stream.read(HEADER_BYTES):
            *whole, rest = (rest + piece.replace(b"\r", b"\n")).split(b"\n")
            lines += sum(1 for line in whole if line)
        ending = 1 if rest else 0
    within = " + ".join(rf"len(regexp_extract_all(coalesce({column}, ''), '[\r\n]+'))" for column in columns)
    rows, more = one_row(
        table.connection,
        f"SELECT count(*), coalesce(sum({within}), 0) FROM {scan.replace('store_rejects', 'ignore_errors')}",
    )
    return lines + ending - int(source.header) - int(rows) - int(more)


def _chosen(table: Table, path: Path, names: list[str], wanted: list[str] | None) -> list[str]:
    chosen = list(table.types) or (list(dict.fromkeys(names)) if wanted is None else wanted)
    missing = next((name for name in chosen if name not in names), None)
    if missing is not None:
        raise UserError(f"{path}: there is no column {missing!r}; {suggest(missing, names)}.")
    return chosen


def _malformed(path: Path, message: str, source: SourceConfig) -> UserError:
    line = re.search(r"Line: (\d+)", message)
    place = f"{path}: line {line.group(1)}" if line else f"{path}: a line"
    fields = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    skip = "or set source.malformed to skip"
    if fields:
        found, expected = int(fields.group(2)), int(fields.group(1))
        return UserError(
            f"{place} has {found} {'field' if found == 1 else 'fields'} where {expected} are expected; correct it (and check "
            f"source.separator, {source.separator!r}), {skip}."
        )
    if "unicode" in message or "encoded" in message:
        return UserError(f"{place} is not {source.encoding}; {_ENCODING}, {skip}.")
    if "quote" in message.splitlines()[0] or "unterminated quote" in message:
        return UserError(
            f"{place} has a quote that is not closed, or not where a field begins; correct it, set source.quote to null if "
            f"quotes mean nothing in this file, {skip}."
        )
    if "line size" in message.lower():
        return UserError(f"{place} is longer than 2,000,000 bytes; check source.quote and source.separator, {skip}.")
    if "state machine" in message:
        return UserError(f"{path}: its lines do not all end alike; make them, as dos2unix does, {skip}.")
    reason = _first_line(Exception(message))
    return UserError(
        f"{place} cannot be read ({reason}); correct the file and check source in the description, {skip}."
    )


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", (str(error).splitlines() or [type(error).__name__])[0])[:200].rstrip(".")


def open_raw(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open the bytes of a file, uncompressed."""
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")


def _is_gzip(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions.") from None
