"""Configuration fields whose value is any registered part of a kind, by its name or with its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from dlrm_mtl.core.registry import registry


class Named(Protocol):
    """Configuration of a part."""

    @property
    def name(self) -> str:
        """Name of the part."""
        ...


class RunConfigLike(Protocol):
    """Argument of a part's ``check``: the root of the configuration, :class:`~dlrm_mtl.config.run.RunConfig`.

    Any part of a configuration may have a method ``check(run)``. It is called after the whole configuration is validated,
    and raises :class:`Misfit` if the part does not fit the tasks, the data, or the other parts.
    """

    @property
    def tasks(self) -> Sequence[Any]:
        """Tasks, each a :class:`~dlrm_mtl.tasks.config.TaskConfig`."""
        ...

    @property
    def data(self) -> Any:
        """Data set, a :class:`~dlrm_mtl.data.config.DataConfig`."""
        ...

    @property
    def model(self) -> Any:
        """Configuration of the model."""
        ...


class Misfit(ValueError):
    """A part of a configuration that does not fit another part.

    Args:
        message: the wrong value and the remedy.
        key: key of the part that the message is about; the whole part by default.
        root: True if ``key`` is a path from the root of the configuration.
    """

    def __init__(self, message: str, key: str = "", *, root: bool = False) -> None:
        super().__init__(message)
        self.key = key
        self.root = root


class Part:
    """Annotation of a field that holds the configuration of a registered part: ``Annotated[Named, Part("architecture")]``.

    In a file the value is a name, ``pcgrad``, or a mapping with the part's options, ``{name: pcgrad, seed: 3}``.

    Args:
        kind: kind of the registry.
        default: part of a mapping without a name, given by name or with options that the mapping overrides.
        also: further configurations that the field may hold, which are not parts of this kind.
    """

    def __init__(self, kind: str, default: str | BaseModel | None = None, also: Sequence[type[BaseModel]] = ()) -> None:
        self.kind = kind
        self.default = default
        self.also = also

    def configs(self) -> dict[str, type[BaseModel]]:
        """Configurations of all parts, by name."""
        others = {config.model_fields["name"].default: config for config in self.also}
        return others | {entry.name: entry.config for entry in registry(self.kind) if entry.config is not None}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Build the union of the configurations registered so far, see :func:`rebuild`."""
        configs = self.configs()
        tagged = core_schema.tagged_union_schema(
            {name: handler.generate_schema(config) for name, config in configs.items()},
            discriminator="name",
            from_attributes=True,
        )
        either = core_schema.union_schema([core_schema.literal_schema(list(configs)), tagged])
        return core_schema.no_info_before_validator_function(self._spelled_out, tagged, json_schema_input_schema=either)

    def _spelled_out(self, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" not in value and self.default is not None:
            return {**self._defaults(), **value}
        return value

    def _defaults(self) -> dict[str, Any]:
        if isinstance(self.default, BaseModel):
            return {"name": getattr(self.default, "name", None), **self.default.model_dump(exclude_unset=True)}
        return {"name": self.default}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Configurations that an annotation mentions, including those of registered parts."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, Part):
        return list(annotation.configs().values())
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def models_of_field(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """Configurations that the field ``name`` of ``model`` may hold."""
    found = model.model_fields[name]
    return [inner for annotation in (found.annotation, *found.metadata) for inner in models_in(annotation)]


def rebuild(root: type[BaseModel], done: set[type[BaseModel]] | None = None) -> None:
    """Add the parts registered since then to the schemas of ``root`` and the configurations in it."""
    done = set() if done is None else done
    if root in done:
        return
    done.add(root)
    for name in root.model_fields:
        for inner in models_of_field(root, name):
            rebuild(inner, done)
    root.model_rebuild(force=True)
