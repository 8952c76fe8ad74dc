"""Unambiguous YAML: PyYAML's safe loader without its surprising readings.

A key twice in one mapping is an error. Only ``true`` and ``false`` are booleans, as in YAML 1.2, so ``name: yes`` is a
text. Dates and times such as ``2024-03-02`` and ``18:30`` stay texts. A text that aliases expand beyond :data:`MOST_NODES`
values, or that nests deeper than :data:`DEEPEST`, is refused before any object is made.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_NODES = 200_000
"""Largest number of values in a text; values behind an alias count each time."""

DEEPEST = 60
"""Largest depth of mappings and lists within each other."""


def parse_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: place and problem, without a full stop, such as "line 3, column 1: the key 'seed' ...".
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise ValueError(f"{place}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except (ValueError, TypeError, LookupError, OverflowError) as error:  # PyYAML lets these through, as for !!int x
        raise ValueError(f"unknown place: a value does not fit its tag ({error})") from None


def to_yaml(value: object) -> str:
    """A value as one line of YAML."""
    text = yaml.dump(
        value, Dumper=_OneLine, default_flow_style=True, allow_unicode=True, width=1_000_000, sort_keys=False
    )
    return text.removesuffix("...\n").strip("\n")


class _OneLine(yaml.SafeDumper):
    """Dumper that writes texts with line ends in double quotes, where they are escaped."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    lines = any(character in text for character in "\n\r\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if lines else None)


_OneLine.add_representer(str, _represent_text)


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise ConstructorError(None, None, f"more than {DEEPEST} mappings and lists are within each other", mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_document(self, node: Node) -> Any:
        _refuse_bombs(node, {})
        return super().construct_document(node)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, ScalarNode):
                key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node)
                if key in seen:
                    raise ConstructorError(
                        None,
                        None,
                        f"the key {key!r} stands here and in line {seen[key]}: leave one",
                        key_node.start_mark,
                    )
                seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: MappingNode) -> None:
        # PyYAML writes merged keys into the node, where they would look like duplicates.
        own = [key.value for key, _ in node.value if isinstance(key, ScalarNode) and not key.tag.endswith(":merge")]
        super().flatten_mapping(node)
        merged = len(node.value) - len(own)
        node.value = [pair for place, pair in enumerate(node.value) if place >= merged or pair[0].value not in own]


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# As in PyYAML, except for 18:30:00 (a number to the base of 60 there) and 010 (8 there).
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile("^(?:[-+]?0x[0-9a-fA-F_]+|[-+]?(?:0|[1-9][0-9_]*))$"), list("-+0123456789")
)


def _refuse_bombs(node: Node, sizes: dict[int, int]) -> int:
    """Count the values below ``node``, those behind aliases each time; raises ConstructorError if there are too many."""
    known = sizes.get(id(node))
    if known == 0:
        raise ConstructorError(None, None, "an alias holds itself", node.start_mark)
    if known is not None:
        return known
    sizes[id(node)] = 0
    children: list[Node] = []
    if isinstance(node, SequenceNode):
        children = list(node.value)
    elif isinstance(node, MappingNode):
        children = [part for pair in node.value for part in pair]
    size = 1
    for child in children:
        size += _refuse_bombs(child, sizes)
        if size > MOST_NODES:
            raise ConstructorError(
                None, None, f"its aliases stand for more than {MOST_NODES:,} values", node.start_mark
            )
    sizes[id(node)] = size
    return size
