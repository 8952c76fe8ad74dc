"""docs/other_programs.md does what it says: its commands and its blocks of Python, in their order."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Piece, blocks, code_lines

PAGE = "docs/other_programs.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]) -> None:
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = [piece for piece in code_lines(PAGE) if piece.text.startswith("dlrm-mtl ")]
    steps: list[Piece] = sorted([*commands, *blocks(PAGE, "python")], key=lambda piece: piece.line)
    names: dict[str, Any] = {}
    for step in steps:
        if step in commands:
            code, printed = call(*shlex.split(step.text)[1:])
            assert code == 0, printed
        else:
            exec(compile("\n" * (step.line - 1) + step.text, str(ROOT / PAGE), "exec", dont_inherit=True), names)
    assert (tmp_path / "shop.onnx").is_file()
