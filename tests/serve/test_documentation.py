"""docs/serving.md and docs/server.md do what they say: their commands and blocks of Python, in their order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.serve.http.servers import running

ROOT = Path(__file__).parents[2]


def test_the_page_on_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    page = "".join((ROOT / "docs" / name).read_text() for name in ("serving.md", "server.md"))
    names: dict[str, Any] = {}
    addresses: dict[str, str] = {}  # servers of the page get free ports here
    with ExitStack() as servers:
        for command, block in re.findall(
            r"^    dlrm-mtl ([^\n]*)$|^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
        ):
            words = shlex.split(command)
            if block:
                for port, address in addresses.items():
                    block = block.replace(f"http://127.0.0.1:{port}", address)
                exec(block, names)
            elif words[0] == "serve":
                port = words[words.index("--port") + 1] if "--port" in words else "0"
                options = [*words[2:], "--port", "0", "--workers", "1"]
                server = servers.enter_context(running(tmp_path / f"log-{len(words)}-{port}", Path(words[1]), *options))
                addresses[port] = server.url
            else:
                code, printed = call(*words)
                assert code == 0, printed
    assert (tmp_path / "scores.parquet").is_file()
    assert names["scorer"].golden_difference <= 1e-6
