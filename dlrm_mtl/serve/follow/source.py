"""The versions that a training publishes, as the place that a server takes its model from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.follow.places import default_cache, versions_store
from dlrm_mtl.serve.follow.prepared import pin, prepare
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.format import REMEDY, StoredVersion


@dataclass(frozen=True)
class FollowedVersion:
    """A published version; a :class:`~dlrm_mtl.serve.http.source.ModelVersion`.

    Args:
        place: folder of the versions, path or URI.
        cache: folder of this machine for bundles.
        versions: a base, and the deltas up to this version.
        make: makes a scorer of a bundle's folder; picklable.
        plugins: modules with parts of the model that the user trusts.
        failures: number of times that a version could not be read, by its identity; shared with the source.
    """

    place: str
    cache: Path
    versions: tuple[StoredVersion, ...]
    make: Callable[[Path], Scorer]
    plugins: tuple[str, ...]
    failures: dict[str, int]
    attempt: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the attempts so far; frozen fields are set like this."""
        object.__setattr__(self, "attempt", self.failures.get(self.versions[-1].id, 0))

    @property
    def key(self) -> str:
        """Number and checksum of the version, which leads to every byte of it and of those before.

        It is another one after a storage error, so that the version is tried again; not after damage.
        """
        own = self.versions[-1].id
        return f"{own} attempt {self.attempt}" if self.attempt else own

    @property
    def name(self) -> str:
        """Name of the version."""
        return self.versions[-1].name

    def load(self, serving: Scorer | None) -> Scorer:
        """The scorer; its tables are the mapped ones of the base, and the rows that have changed since."""
        own = self.versions[-1].id
        try:
            folder = prepare(self.cache, versions_store(self.place), self.versions, self.plugins)
        except UserError as error:
            if REMEDY not in str(error):
                self.failures[own] = self.attempt + 1
            raise
        scorer = self.make(folder)
        scorer.version = own
        return scorer


@dataclass(frozen=True)
class RefusedVersion:
    """A version that does not follow those before; loading it raises the reason.

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
    """The newest published versions; a :class:`~dlrm_mtl.serve.http.source.VersionSource`.

    Args:
        place: folder of the versions, path or URI.
        make: makes a scorer of a bundle's folder; picklable.
        cache: folder of this machine for bundles; default: one for this place in the user's cache.
        plugins: modules with parts of the model that the user trusts.
    """

    def __init__(
        self, place: str, make: Callable[[Path], Scorer], cache: Path | None = None, plugins: Sequence[str] = ()
    ) -> None:
        self._place, self._make, self._plugins = place, make, tuple(plugins)
        self._cache = cache or default_cache(place)
        self._chain: Chain | None = None
        self._failures: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The place."""
        return self._place

    def versions(self) -> Sequence[FollowedVersion | RefusedVersion]:
        """The newest version that follows those before, then the earlier ones back to the base.

        A version that does not is the first; loading it raises the reason.

        Raises:
            UserError: the folder cannot be read, or has become that of another run.
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
        for count in range(len(found.versions), 0, -1):
            part = tuple(found.versions[:count])
            result.append(FollowedVersion(self._place, self._cache, part, self._make, self._plugins, self._failures))
        return result
