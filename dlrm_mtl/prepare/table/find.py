"""Finding the files of a user's table, and the split of each."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare.table.description import Shares, SourceConfig
from dlrm_mtl.prepare.table.kinds import starts_as_parquet

TABLES = (".csv", ".tsv")
"""Endings of text files that are tables; if a folder holds such files, others are skipped."""

NO_TABLE = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|changes|citation|authors|md5sums?|sha\d+sums?|checksums?|index)(\..*)?"
    r"|.*\.(md|rst|pdf|html?|xml|json|ya?ml|toml|ini|cfg|py|ipynb|r|sql|sh|docx?|xlsx?|png|jpe?g|gif|svg|zip|tar|tgz|md5|sha\d+)",
    re.IGNORECASE,
)
"""Names of files that are not tables."""


@dataclass(frozen=True)
class Found:
    """Files of a table."""

    files: list[Path]
    parquet: bool
    passed_over: list[Path] = field(default_factory=list)
    """Skipped files in the folders."""

    @property
    def remarks(self) -> list[str]:
        """Remarks on skipped files."""
        if not self.passed_over:
            return []
        kind = "Parquet" if self.parquet else "CSV"
        return [
            f"remark: {_shown(self.passed_over)} passed over, beside {kind} files; name a file itself to have it read"
        ]

    def without_split(self, chosen: Sequence[Path]) -> list[str]:
        """Remarks on files in no split, if splits consist of the files ``chosen``."""
        taken = set(chosen)
        others = [path for path in (*self.files, *self.passed_over) if path not in taken]
        if not others:
            return []
        none = "is in no split and is" if len(others) == 1 else "are in no split and are"
        return [f"remark: {_shown(others)} {none} left out; name it in split.files to have it read"]


def _shown(paths: Sequence[Path]) -> str:
    """First names of ``paths``, and the number of further ones."""
    names = ", ".join(repr(str(path)) for path in paths[:3])
    return names + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")


def find_files(inputs: Sequence[Path], source: SourceConfig, *, every: bool = False) -> Found:
    """Data files that ``inputs`` name, files or folders, in order.

    In folders, names that begin with ``_`` or ``.`` are skipped. Unless ``every`` is set, so are files whose names are not
    those of tables, and all others beside .csv and .tsv files. A file that is named twice is read once.

    Raises:
        UserError: there is no such file, or files of both formats.
    """
    files: list[Path] = []
    passed_over: list[Path] = []
    for path in dict.fromkeys(inputs):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _visible(file.relative_to(path)))
            chosen = [file for file in inside if is_parquet(file)] if source.format != "csv" else []
            if not chosen and source.format != "parquet":
                texts = [file for file in inside if not is_parquet(file)]
                chosen = texts if every else _tables(texts)
            if not chosen:
                raise UserError(f"{path}: holds no {source.format or 'CSV or Parquet'} file; name another folder.")
            files += chosen
            passed_over += [file for file in inside if file not in set(chosen)]
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder; check --input.")
    files = list({file.absolute(): file for file in files}.values())
    passed_over = [file for file in passed_over if file not in set(files)]
    parquet = {source.format == "parquet" if source.format else is_parquet(file) for file in files}
    if len(parquet) > 1:
        raise UserError(
            f"{inputs[0]}: there are CSV and Parquet files; set source.format in the description, or name files of one format."
        )
    return Found(files, parquet.pop(), passed_over)


def _tables(files: Sequence[Path]) -> list[Path]:
    """Tables among the text files of a folder: .csv and .tsv files if there are any, else all files that may be tables."""
    surely = [file for file in files if _ending(file) in TABLES]
    return surely or [file for file in files if not NO_TABLE.fullmatch(file.name)] or list(files)


def _ending(file: Path) -> str:
    """Ending of a file's name, in lower case, without that of its compression."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


@dataclass(frozen=True)
class FileSplits:
    """Splits of files: one split for a file, or a random division into several."""

    whole: dict[Path, str]
    """Split of each undivided file."""
    divided: dict[Path, Shares]
    """Fractions of the splits of each divided file."""

    @property
    def files(self) -> list[Path]:
        """All files, in the order of their splits."""
        return [*self.whole, *self.divided]


def files_of_splits(
    files: Sequence[Path],
    inputs: Sequence[Path],
    patterns: Mapping[str, Sequence[str]],
    divide: Mapping[str, Shares],
) -> FileSplits:
    """Splits of each file that a pattern matches, in the order of splits.

    Args:
        files: all files.
        inputs: files and folders from the user; patterns are relative to the folders.
        patterns: names of each split's files, or patterns.
        divide: fractions by which a file is divided, by name or pattern.

    Raises:
        UserError: a pattern matches no file, or two match one.
    """
    chosen: dict[Path, str] = {}
    names = {file: _names(file, inputs) for file in files}

    def matching(pattern: str, place: str) -> list[Path]:
        matched = [file for file in files if any(fnmatch.fnmatchcase(name, pattern) for name in names[file])]
        if not matched:
            known = suggest(pattern, {min(names[file], key=len) for file in files[:20]})
            raise UserError(f"{place}: no file of --input matches {pattern!r}; {known}.")
        return matched

    for split, wanted in patterns.items():
        for pattern in wanted:
            for file in matching(pattern, f"split.files.{split}"):
                if chosen.setdefault(file, split) != split:
                    raise UserError(
                        f"split.files: {file} belongs to the splits {chosen[file]!r} and {split!r}; a row may be in one only: "
                        f"to divide the file, name it in split.divide instead, as {{{file.name}: "
                        f"{{{chosen[file]}: 0.5, {split}: 0.5}}}}."
                    )
    divided: dict[Path, Shares] = {}
    for pattern, shares in divide.items():
        for file in matching(pattern, f"split.divide.{pattern}"):
            other = "split.files" if file in chosen else "split.divide"
            if file in chosen or divided.get(file, shares) != shares:
                raise UserError(
                    f"split.divide.{pattern}: {file} is named in {other}, too; a row may be in one split only: remove one."
                )
            divided[file] = shares
    return FileSplits(chosen, divided)


GIVEN = {"train": "train|training|trn", "validation": "val|valid|validation|dev", "test": "test|tst|testing|eval"}
"""Common names of files that are splits."""


def given_splits(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the splits in their names; empty unless every name has one split, and there are `train` and another."""
    found: dict[str, list[Path]] = {}
    for file in files:
        words = set(re.split(r"[^a-z]+", file.name.lower()))
        said = [split for split, names in GIVEN.items() if words & set(names.split("|"))]
        if len(said) != 1:
            return {}
        found.setdefault(said[0], []).append(file)
    twice = Counter(file.name for file in files)
    return found if len(found) > 1 and "train" in found and max(twice.values()) == 1 else {}


def is_parquet(path: Path) -> bool:
    """Return True if a file is Parquet, by its name or its first bytes."""
    return path.suffix.lower() in (".parquet", ".pq") or starts_as_parquet(path)


def _visible(relative: Path) -> bool:
    return not any(part.startswith(("_", ".")) for part in relative.parts)


def _names(file: Path, inputs: Sequence[Path]) -> set[str]:
    """Names of a file for patterns: its path, and its path below an input folder; its name if the file is an input itself."""
    below = {str(file.relative_to(folder)) for folder in inputs if folder in file.parents}
    return {str(file), *(below or {file.name})}
