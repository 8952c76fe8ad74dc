"""docs/following.md does what it says: its commands, in their order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import dlrm_mtl
from tests.serve.http.servers import running

ROOT = Path(__file__).parents[2]


def test_the_page_on_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "following.md").read_text()
    answered = ""
    for command in re.findall(r"^    dlrm-mtl ([^\n]*)$", page, re.MULTILINE):
        words = shlex.split(command)
        if words[0] == "serve":
            assert words[1:3] == ["--follow", "versions/shop"]
            with running(tmp_path / "log", "--follow=versions/shop", "--cache", "cache", "--workers", 1) as server:
                answered = httpx.get(f"{server.url}/v1/model", trust_env=False).json()["version"]
        else:
            code, printed = call(*words)
            assert code == 0, printed
    assert re.fullmatch(r"3-[0-9a-f]{16}", answered)
    assert dlrm_mtl.Scorer("bundles/live").step == 5
