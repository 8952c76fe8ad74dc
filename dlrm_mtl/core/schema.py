"""Strict YAML models: unknown keys are errors, and every error is one plain sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import models_of_field
from dlrm_mtl.core.suggest import closest, did_you_mean
from dlrm_mtl.core.yaml_text import parse_yaml


class Strict(BaseModel):
    """Base of every configuration model: unknown keys are refused, instances are immutable.

    A schema is built when it is first used, not with its class, so that parts can be registered in between.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )


class PartConfig(Strict):
    """Base of the configurations of registered parts; each has a field ``name: Literal["x"] = "x"``."""

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """Name of the part."""
            ...


LearningRate = Annotated[float, Field(gt=0)]
"""Step size of an optimizer."""

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from ``path``; raises :class:`UserError` if that fails."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [str(path.with_name(other.name)) for other in sorted(path.parent.glob("*.y*ml"))]
        close = closest(str(path), beside, cutoff=0.8)
        hint = f"did you mean {close}?" if close else f"check the path (it is relative to {Path.cwd()})."
        raise UserError(f"{path}: there is no such file; {hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder where a YAML file is expected; name a file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a readable YAML file.") from None
    return mapping_of(text, path)


def mapping_of(text: str, place: str | Path) -> dict[str, Any]:
    """Parse ``text`` as a YAML mapping; raises :class:`UserError`, which begins with ``place``, if it is not one."""
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{place}: {error}; correct the YAML syntax there.") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{place}: holds {found} where a mapping of keys to values is expected.")
    return content


def validate(model: type[Model], content: dict[str, Any], place: str) -> Model:
    """Validate ``content``; raises :class:`UserError` with one line per mistake, each starting with ``place``."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(_sentences(error, model, content, place))) from None


def _sentences(error: ValidationError, model: type[BaseModel], content: dict[str, Any], place: str) -> list[str]:
    sentences = []
    for detail in error.errors(include_url=False):
        kind, context = detail["type"], detail.get("ctx", {})
        location = list(_visible(detail["loc"], content, missing=kind == "missing"))
        path = ".".join(str(part) for part in location) or "(top level)"
        if kind == "extra_forbidden":
            key, allowed = str(location[-1]), _keys_beside(model, detail["loc"])
            elsewhere = _path_elsewhere(model, key) if closest(key, allowed) is None else None
            hint = f"did you mean {elsewhere}? allowed: {', '.join(allowed)}" if elsewhere else _suggest(key, allowed)
            sentences.append(f"{place}: {path}: there is no key {key!r} here; {hint}.")
        elif kind == "missing":
            sentences.append(f"{place}: {path}: this key is required; add it.")
        elif kind in ("union_tag_invalid", "literal_error", "enum"):
            key = str(context.get("discriminator", "")).strip("'")
            where = f"{path}.{key}" if key else path
            value = context.get("tag", detail["input"])
            expected = str(context.get("expected_tags", context.get("expected", ""))).replace(" or ", ", ")
            names = [name.strip().strip("'") for name in expected.split(",")]
            sentences.append(f"{place}: {where}: {value!r} is not a choice; {_suggest(str(value), names)}.")
        elif kind == "union_tag_not_found":
            key = str(context.get("discriminator", "name")).strip("'")
            sentences.append(f"{place}: {path}: the key {key!r} is required here; add it.")
        elif kind == "too_short":
            sentences.append(f"{place}: {path}: the list is empty; add at least one entry.")
        elif kind == "multiple_of" and isinstance(detail["input"], int):
            unit = context["multiple_of"]
            fits = max(1, -(-detail["input"] // unit)) * unit
            sentences.append(f"{place}: {path}: {detail['input']} is no multiple of {unit}; write {fits}.")
        elif kind == "value_error":
            sentences.append(f"{place}: {path}: {context['error']}")
        else:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            sentences.append(f"{place}: {path}: {_short(detail['input'])} does not fit: {message}.")
    return sentences


def _visible(location: tuple[int | str, ...], content: Any, missing: bool) -> list[int | str]:
    """Drop the tags of discriminated unions, which pydantic adds to locations but which are not keys of the file.

    A tag with a default may be absent from the file. The only key that may be absent is a ``missing`` one, the last part.
    """
    visible: list[int | str] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(content, dict) and part not in content and not (last and missing):
            continue
        if isinstance(content, list) and not isinstance(part, int):
            continue
        if isinstance(content, str) and part == content:  # a part by its bare name, which is the tag
            continue
        visible.append(part)
        if isinstance(content, dict):
            content = content.get(part)  # type: ignore[arg-type]
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            content = None
    return visible


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed at the last part of ``location``."""
    candidates: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        following: list[type[BaseModel]] = []
        for candidate in candidates:
            fields = candidate.model_fields
            if isinstance(part, str) and part in fields:
                following.extend(models_of_field(candidate, part))
            elif "name" in fields and part in get_args(fields["name"].annotation):
                following.append(candidate)
        candidates = following or candidates
    return sorted({key for candidate in candidates for key in candidate.model_fields})


def _path_elsewhere(model: type[BaseModel], key: str) -> str | None:
    """Shortest path of a key ``key`` in ``model``, such as training.epochs; None if there is none."""
    level: list[tuple[tuple[str, ...], type[BaseModel]]] = [((), model)]
    seen: set[type[BaseModel]] = set()
    while level:
        following = []
        for path, candidate in level:
            if key in candidate.model_fields:
                return ".".join((*path, key))
            seen.add(candidate)
            for name, field in candidate.model_fields.items():
                if get_origin(field.annotation) not in (
                    list,
                    dict,
                ):  # the path of their entries needs a number or a name
                    following += [((*path, name), inner) for inner in models_of_field(candidate, name)]
        level = [(path, candidate) for path, candidate in following if candidate not in seen]
    return None


def _suggest(value: str, allowed: list[str]) -> str:
    return f"{did_you_mean(value, allowed)}allowed: {', '.join(allowed)}"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
