"""The versions that a training publishes, as the place that a server takes its model from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.serve.follow.calibration import FollowedCalibration
from dlrm_mtl.serve.follow.places import default_cache, versions_store
from dlrm_mtl.serve.follow.prepared import pin, prepare
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.serve.tables import check_format
from dlrm_mtl.storage.run_store import StorageError
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.format import StoredVersion


@dataclass(frozen=True)
class FollowedVersion:
    """A published version whose bundle is on this machine; a :class:`~dlrm_mtl.serve.http.source.ModelVersion`.

    Args:
        key: number and checksum of the version, which leads to every byte of it and of those before, and what else its scores
            depend on: the format of tables that are rounded, the digest of the calibration.
        name: name for logs.
        folder: folder of the bundle.
        make: makes a scorer of a bundle's folder; picklable.
        calibration: maps of its predictions.
    """

    key: str
    name: str
    folder: Path
    make: Callable[[Path], Scorer]
    calibration: FollowedCalibration | None = None

    def load(self, serving: Scorer | None) -> Scorer:
        """The scorer; its tables are the mapped ones of the base, and the rows that have changed since."""
        scorer = self.make(self.folder)
        scorer.version = self.key
        if self.calibration is not None:
            self.calibration.put_on(scorer)
        return scorer


@dataclass(frozen=True)
class RefusedVersion:
    """A version that cannot be used; loading it raises the reason.

    Args:
        key: text that distinguishes it.
        name: name for logs.
        reason: error sentence.
    """

    key: str
    name: str
    reason: str

    def load(self, serving: Scorer | None) -> Scorer:
        """Raise the reason."""
        raise UserError(self.reason)


class FollowedVersions:
    """The newest published version; a :class:`~dlrm_mtl.serve.http.source.VersionSource`.

    Args:
        place: folder of the versions, path or URI.
        make: makes a scorer of a bundle's folder; picklable.
        cache: folder of this machine for bundles; default: one for this place in the user's cache.
        plugins: modules with parts of the model that the user trusts.
        format: format of the tables. One other than fp32 has a folder of its own in ``cache``.
        calibration: maps of the predictions.

    Raises:
        UserError: the format is unknown.
    """

    def __init__(
        self,
        place: str,
        make: Callable[[Path], Scorer],
        cache: Path | None = None,
        plugins: Sequence[str] = (),
        format: FormatName = "fp32",
        calibration: FollowedCalibration | None = None,
    ) -> None:
        check_format(format)
        self._place, self._make, self._plugins, self._format = place, make, tuple(plugins), format
        self._cache = cache or default_cache(place)
        self._suffix = ""
        if format != "fp32":
            self._cache, self._suffix = self._cache / format, f"-{format}"
        self._calibration = calibration
        if calibration is not None:
            self._suffix += f"-{calibration.digest}"
        self._chain: Chain | None = None
        self._refused: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The place."""
        return self._place

    def versions(self) -> Sequence[FollowedVersion | RefusedVersion]:
        """The newest version that can be used, after those that cannot; a new one is read into the cache.

        Raises:
            UserError: the folder cannot be read, has become that of another run, or the cache cannot be written to.
        """
        if self._chain is None:
            self._chain = Chain(versions_store(self._place))
        identity = self._chain.identity()
        if identity is None:
            return []
        pin(self._cache, identity, self._place)
        found = self._chain.newest(identity)
        result: list[FollowedVersion | RefusedVersion] = []
        if found.problem is not None:
            result.append(RefusedVersion(str(found.problem), "refused", str(found.problem)))
        known = {stored.id for stored in found.versions}
        self._refused = {own: reason for own, reason in self._refused.items() if own in known}
        for count in range(len(found.versions), 0, -1):
            own = found.versions[count - 1]
            try:
                folder = self._prepared(self._chain, found.versions[:count])
            except StorageError:
                raise
            except UserError as error:
                self._refused[own.id] = str(error)
                result.append(RefusedVersion(own.id, own.name, str(error)))
                continue
            result.append(FollowedVersion(own.id + self._suffix, own.name, folder, self._make, self._calibration))
            break
        return result

    def _prepared(self, chain: Chain, versions: Sequence[StoredVersion]) -> Path:
        reason = self._refused.get(versions[-1].id)
        if reason is not None:
            raise UserError(reason)
        return prepare(self._cache, chain.store, versions, self._plugins, self._format)
