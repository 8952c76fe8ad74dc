"""The places that a server takes its model from. A new kind of place is a new :class:`VersionSource`.

Every worker has a source of its own, and asks it again and again. A source must not open connections or start threads before
its first call: workers are forked from a process that holds it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.bundle import BUNDLE_FILE
from dlrm_mtl.serve.encode import Policies
from dlrm_mtl.serve.raw.open import RowKind
from dlrm_mtl.serve.scorer import Scorer


class ModelVersion(Protocol):
    """A version of the model that can be loaded. Instances are picklable: workers that are replaced get the last good one."""

    @property
    def key(self) -> str:
        """Text that distinguishes versions; another one after any change of what is stored, so that it is loaded again."""
        ...

    @property
    def name(self) -> str:
        """Name for logs and metrics, such as that of a folder; without secrets."""
        ...

    def load(self, serving: Scorer | None) -> Scorer:
        """The checked scorer of this version. The calling worker goes on serving while it is made.

        Args:
            serving: the scorer in use, whose tables the new one may share, but must not change; None at the start.

        Raises:
            UserError: the version is damaged, incomplete, or scores its golden rows wrongly.
        """
        ...


class VersionSource(Protocol):
    """A place that holds versions of a model. Its methods are called by one thread of a worker."""

    @property
    def name(self) -> str:
        """Name for logs, such as a path; without secrets."""
        ...

    def versions(self) -> Sequence[ModelVersion]:
        """Versions that are there, the one to serve first, then those to fall back to; none if nothing is there yet.

        This is called every few seconds, and reads little.

        Raises:
            UserError: the place cannot be read, or holds something else.
        """
        ...


@dataclass(frozen=True)
class ScorerFactory:
    """Options with which scorers of all versions are made; see :class:`~dlrm_mtl.serve.scorer.Scorer`."""

    missing: Policies | None = None
    unknown: Policies | None = None
    plugins: tuple[str, ...] = ()
    rows: RowKind = "prepared"

    def __call__(self, bundle: Path, check_all: bool = False) -> Scorer:
        """The scorer of a bundle; see there for ``check_all``."""
        return Scorer(
            bundle,
            missing=self.missing,
            unknown=self.unknown,
            plugins=self.plugins,
            check_all=check_all,
            rows=self.rows,
        )


@dataclass(frozen=True)
class BundleVersion:
    """A bundle in a local folder.

    Args:
        folder: its folder, without links.
        key: see :class:`ModelVersion`.
        make: makes a scorer of a folder.
    """

    folder: Path
    key: str
    make: ScorerFactory

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    def load(self, serving: Scorer | None) -> Scorer:
        """The scorer. At the start, tables are checked as they are used; afterwards there is time to check them whole."""
        return self.make(self.folder, check_all=serving is not None)


class LocalBundles:
    """A bundle, a link to one, or a folder of bundles, of which the last by name is served.

    Numbers in names count as numbers: step_1000 comes after step_900. A link is followed anew whenever versions are asked for.

    Args:
        path: local folder or link.
        make: makes a scorer of a bundle's folder.
    """

    def __init__(self, path: str | Path, make: ScorerFactory) -> None:
        self._path, self._make = Path(path), make

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def versions(self) -> Sequence[BundleVersion]:
        """See :class:`VersionSource`."""
        if (self._path / BUNDLE_FILE).exists():
            return self._known([self._path])
        try:
            names = os.listdir(self._path)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self._path}: there is no bundle here; name the folder that `dlrm-mtl export` wrote, or a folder of them."
            ) from None
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror}).") from None
        inside = [self._path / name for name in sorted(names, key=_in_order, reverse=True) if not name.startswith(".")]
        bundles = [folder for folder in inside if folder.suffix != ".tmp" and (folder / BUNDLE_FILE).exists()]
        if not bundles and any(path.is_file() for path in inside):
            raise UserError(
                f"{self._path}: there is no bundle here; name the folder that `dlrm-mtl export` wrote, which holds "
                f"{BUNDLE_FILE}, or a folder of such folders."
            )
        return self._known(bundles)

    def _known(self, folders: Sequence[Path]) -> list[BundleVersion]:
        found = []
        for each in folders:
            folder = each.resolve()
            key = _state(folder)
            if key:
                found.append(BundleVersion(folder, key, self._make))
        return found


def _state(folder: Path) -> str:
    """Digest of names, sizes and times of the files in ``folder``; empty if it is gone, or changes meanwhile."""
    digest = hashlib.sha256(os.fsencode(folder))
    try:
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            state = entry.stat()
            digest.update(f"{entry.name!r} {state.st_size} {state.st_mtime_ns} {state.st_ino}\n".encode())
    except OSError:
        return ""
    return digest.hexdigest()


def _in_order(name: str) -> list[tuple[int, int, str]]:
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
