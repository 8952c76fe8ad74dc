"""Open registries: every kind of part by name, from this package and from others.

A part registers itself, and no other list names it::

    @register("architecture", "mmoe", config=MMoEConfig)
    class MMoE(Block): ...

The parts of this package are found in the folders that :func:`home` names, so a new part is one new file. Parts of other
packages are registered when their module is imported, see :mod:`dlrm_mtl.core.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest

if TYPE_CHECKING:  # a dense optimizer alone needs only PyTorch
    from pydantic import BaseModel

PartT = TypeVar("PartT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered part."""

    kind: str
    name: str
    part: Any
    """Registered class or function."""
    config: type[BaseModel] | None
    """Configuration of the part. Its field ``name`` has the part's name as only value. None for a part without options."""
    about: dict[str, Any] = field(default_factory=dict)
    """Further facts that the kind requires, such as a metric's heading."""

    @property
    def summary(self) -> str:
        """First line of the docstring of the configuration, or of the part."""
        return (((self.config or self.part).__doc__ or "").strip().splitlines() or [""])[0]

    @property
    def place(self) -> str:
        """Full name of the class or function."""
        return f"{self.part.__module__}.{self.part.__qualname__}"


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: name of the kind, such as ``architecture``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._homes: list[str] = []
        self._of_config: dict[type, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Add a part.

        Raises:
            ValueError: another part has the name, or the field ``name`` of the configuration differs from it.
        """
        known = self._entries.get(entry.name)
        if known is not None and known.place != entry.place:
            raise ValueError(
                f"the {self.kind} {entry.name!r} is registered twice, by {known.place} and {entry.place}; rename one."
            )
        if entry.config is not None:
            named = entry.config.model_fields.get("name")
            if named is None or named.default != entry.name:
                raise ValueError(
                    f"{entry.config.__qualname__}, the configuration of the {self.kind} {entry.name!r}, needs the field "
                    f'name: Literal["{entry.name}"] = "{entry.name}".'
                )
            self._of_config[entry.config] = entry
        self._entries[entry.name] = entry

    def home(self, package: str) -> None:
        """Name a package whose modules register parts of this kind; they are imported when a part is first requested."""
        if package not in self._homes:
            self._homes.append(package)

    def __getitem__(self, name: str) -> Entry:
        """Return the part called ``name``; raises :class:`UserError` with a suggestion if there is none."""
        self._discover()
        if name not in self._entries:
            raise UserError(f"there is no {self.kind} {name!r}; {suggest(name, self._entries)}.")
        return self._entries[name]

    def of_config(self, config: object) -> Entry:
        """Return the part that ``config`` belongs to, an instance of its configuration."""
        self._discover()
        return self._of_config[type(config)]

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all parts: by ``about["order"]`` where given, then by name."""
        self._discover()
        return iter(sorted(self._entries.values(), key=lambda entry: (entry.about.get("order", 1000), entry.name)))

    def __contains__(self, name: object) -> bool:
        """Return True if a part is called ``name``."""
        self._discover()
        return name in self._entries

    def names(self) -> list[str]:
        """Names of all parts, in the order of iteration."""
        return [entry.name for entry in self]

    def described(self) -> dict[str, str]:
        """Summary line of every part, by name."""
        return {entry.name: entry.summary for entry in self}

    def _discover(self) -> None:
        while self._homes:
            package = importlib.import_module(self._homes.pop())
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")


_REGISTRIES: dict[str, Registry] = {}
_registered = 0


def registrations() -> int:
    """Number of parts registered so far. A schema made at a smaller number does not know all parts."""
    return _registered


def registry(kind: str) -> Registry:
    """Return the registry of ``kind``."""
    return _REGISTRIES.setdefault(kind, Registry(kind))


def home(kind: str, package: str) -> Registry:
    """Return the registry of ``kind`` and let it find parts in ``package``."""
    found = registry(kind)
    found.home(package)
    return found


def register(kind: str, name: str, *, config: type[BaseModel] | None = None, **about: Any) -> Callable[[PartT], PartT]:
    """Register the class or function that follows as the part ``name`` of ``kind``.

    Args:
        kind: kind of the part, such as ``architecture``, ``loss`` or ``metric``; docs/extending.md lists the kinds.
        name: name of the part in configurations.
        config: configuration of the part; omitted if the class is its own configuration, or there are no options.
        about: facts that the kind requires.

    Raises:
        ValueError: the name is taken, or ``config`` has a different name.
    """

    def add(part: PartT) -> PartT:
        global _registered
        _registered += 1
        own = part if isinstance(part, type) and hasattr(part, "model_fields") else None
        registry(kind).add(Entry(kind, name, part, config or own, about))
        return part

    return add
