"""The chain of published versions in a folder: which versions there are, and whether each follows the one before."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.storage.run_store import RunStore, StorageError
from dlrm_mtl.versions.format import (
    CHAIN_FILE,
    REMEDY,
    VERSION_FILE,
    StoredVersion,
    parse_version,
    version_name,
    version_number,
)


@dataclass
class NewestVersions:
    """The newest versions that can be used."""

    versions: list[StoredVersion] = field(default_factory=list)
    """A base and the deltas that follow it, in order; empty if there is no base."""
    problem: UserError | None = None
    """Why later versions are refused; None if there are none."""


class Chain:
    """The versions in a folder.

    Args:
        store: files of the folder.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._known: dict[str, StoredVersion] = {}

    def identity(self) -> str | None:
        """Identity of the chain; None if nothing was published yet.

        Raises:
            UserError: the file that says it is damaged or cannot be read.
        """
        content = self.store.read(CHAIN_FILE)
        if content is None:
            return None
        place = f"{self.store.place}/{CHAIN_FILE}"
        chain = parse_mapping(content, place, "publish to another folder").get("chain")
        if not isinstance(chain, str):
            raise UserError(f"{place}: does not hold the identity of published versions; publish to another folder.")
        return chain

    def begin(self, identity: str) -> None:
        """Make the folder that of the chain ``identity``."""
        self.store.write(CHAIN_FILE, json.dumps({"chain": identity}))

    def numbers(self) -> list[int]:
        """Numbers of the complete versions, ascending."""
        complete = (name.partition("/") for name in self.store.files(""))
        found = {version_number(folder) for folder, _, file in complete if file == VERSION_FILE}
        return sorted(number for number in found if number is not None)

    def read(self, number: int) -> StoredVersion:
        """A complete version.

        Raises:
            UserError: its ``version.json`` is missing, damaged, or that of another version.
        """
        name = version_name(number)
        if name in self._known:
            return self._known[name]
        place = f"{self.store.place}/{name}/{VERSION_FILE}"
        text = self.store.read(f"{name}/{VERSION_FILE}")
        if text is None:
            raise UserError(f"{place}: is missing; {REMEDY}.")
        found = parse_version(text, place)
        if found.version.number != number:
            raise UserError(f"{place}: is that of {found.name}; {REMEDY}.")
        self._known[name] = found
        return found

    def newest(self, chain: str | None = None, until: int | None = None) -> NewestVersions:
        """The newest versions that can be used: they follow each other without a gap, up to the first problem.

        Args:
            chain: identity of the chain; default: that of the folder.
            until: number of the last version to consider; None for all.

        Raises:
            UserError: the folder cannot be read.
        """
        chain = self.identity() if chain is None else chain
        found = NewestVersions()
        broken = False
        numbers = [number for number in self.numbers() if until is None or number <= until]
        self._known = {name: known for name, known in self._known.items() if version_number(name) in numbers}
        for number in numbers:
            try:
                stored = self.read(number)
                self._check_chain(stored, chain)
                if stored.version.kind == "base":
                    found = NewestVersions([stored])
                    broken = False
                elif not broken:
                    self._check_follows(stored, found.versions)
                    found.versions.append(stored)
            except StorageError:
                raise
            except UserError as error:
                if not broken:
                    found.problem = error
                broken = True
        return found

    def _check_chain(self, stored: StoredVersion, chain: str | None) -> None:
        if stored.version.chain != chain:
            raise UserError(
                f"{self.store.place}/{stored.name}: was published by another run than the other versions here; remove it."
            )

    def _check_follows(self, stored: StoredVersion, before: list[StoredVersion]) -> None:
        place = f"{self.store.place}/{stored.name}"
        last = before[-1] if before else None
        if last is None or stored.version.number != last.version.number + 1:
            missing = version_name(stored.version.number - 1)
            raise UserError(f"{place}: applies to {missing}, which is missing; {REMEDY}.")
        if stored.version.applies_to != last.digest:
            raise UserError(f"{place}: applies to another {last.name} than the one here; {REMEDY}.")
