"""Registries, and the configuration fields made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import Named, Part, rebuild
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.registry import register, registry
from dlrm_mtl.core.schema import Strict, validate


class RoundConfig(Strict):
    """Round ones."""

    name: Literal["round"] = "round"
    radius: float = 1.0


class SquareConfig(Strict):
    """Square ones."""

    name: Literal["square"] = "square"
    side: int = 2


@register("shape", "round", config=RoundConfig)
class Round: ...


class Inner(Strict):
    shape: Annotated[Named, Part("shape", default="round")] = RoundConfig()


class Outer(Strict):
    shapes: list[Annotated[Named, Part("shape")]] = Field(default_factory=list)
    inner: Inner = Inner()


def test_a_part_is_named_spelled_out_or_the_default() -> None:
    outer = validate(Outer, {"shapes": ["round", {"name": "round", "radius": 3}]}, "here")
    assert outer.shapes == [RoundConfig(), RoundConfig(radius=3)]
    assert validate(Outer, {"inner": {"shape": {"radius": 2}}}, "here").inner.shape == RoundConfig(radius=2)
    assert validate(Outer, outer.model_dump(mode="json"), "here") == outer
    assert Outer(inner=Inner(shape=RoundConfig(radius=5))).model_dump()["inner"]["shape"] == {
        "name": "round",
        "radius": 5,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"shapes": ["rond"]}, "here: shapes.0.name: 'rond' is not a choice; did you mean 'round'? allowed: round"),
        (
            {"shapes": [{"name": "round", "radus": 1}]},
            "shapes.0.radus: there is no key 'radus' here; did you mean 'radius'?",
        ),
        ({"inner": {"shape": {"radus": 1}}}, "inner.shape.radus: there is no key 'radus' here; did you mean 'radius'?"),
        ({"shapes": [{"name": "round", "radius": "x"}]}, "here: shapes.0.radius: 'x' does not fit"),
        ({"shapes": [{}]}, "here: shapes.0: the key 'name' is required here; add it."),
    ],
)
def test_a_mistake_names_its_place(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Outer, content, "here")
    assert message in str(caught.value)


def test_a_part_that_is_registered_later_is_known_after_a_rebuild() -> None:
    register("shape", "square", config=SquareConfig)(type("Square", (), {}))
    try:
        rebuild(Outer)
        assert validate(Outer, {"inner": {"shape": {"name": "square", "side": 4}}}, "here").inner.shape == SquareConfig(
            side=4
        )
        assert registry("shape").names() == ["round", "square"]
        assert "square" in str(Outer.model_json_schema())
    finally:
        del registry("shape")._entries["square"]
        rebuild(Outer)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register("shape", "round", config=RoundConfig)(type("Other", (), {}))
    with pytest.raises(ValueError, match=r'needs the field name: Literal\["oval"\]'):
        register("shape", "oval", config=RoundConfig)(type("Oval", (), {}))


def test_an_unknown_name_is_a_sentence() -> None:
    with pytest.raises(UserError, match="there is no shape 'rond'; did you mean 'round'"):
        registry("shape")["rond"]


def test_plugins_that_cannot_be_loaded_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_more.py").write_text("import surely_not_there\n")
    with pytest.raises(UserError, match=r"plugins\.0: there is no module 'not_there\.at_all'"):
        load_plugins(["not_there.at_all"], "plugins.0")
    with pytest.raises(UserError, match="needs_more needs surely_not_there, which is not installed"):
        load_plugins(["needs_more"], "plugins.0")
