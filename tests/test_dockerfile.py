"""The Dockerfiles name files that are there, for all builds; no Docker engine is asked for."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from dlrm_mtl.cli import app

ROOT = Path(__file__).resolve().parents[1]


FILES = ["Dockerfile", "Dockerfile.serve"]


def instructions(file: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / file).read_text()).replace("\\\n", "")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("file", "build", "count"), [(FILES[0], "cpu", 5), (FILES[0], "cuda", 5), (FILES[1], "cpu", 3)]
)
def test_what_is_copied_is_there(file: str, build: str, count: int) -> None:
    copied = [words for name, words in instructions(file) if name == "COPY" and not words.startswith("--from=")]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert len(copied) == count
    for words in copied:
        *sources, _ = shlex.split(words.replace("${BUILD}", build))
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch(source, pattern.removeprefix("**/")) for pattern in ignored), source


@pytest.mark.parametrize("file", FILES)
def test_it_has_what_the_package_is_built_from(file: str) -> None:
    copied = {source for name, words in instructions(file) if name == "COPY" for source in shlex.split(words)[:-1]}
    assert {"pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in", "LICENSE", "dlrm_mtl"} <= copied


@pytest.mark.parametrize("file", FILES)
def test_its_python_is_one_that_is_supported(file: str) -> None:
    (base,) = {words.partition(" ")[0] for name, words in instructions(file) if name == "FROM"}
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert version is not None
    assert 10 <= int(version.group(1)) <= 13


def test_the_server_starts_with_options_that_exist() -> None:
    (start,) = [words for name, words in instructions("Dockerfile.serve") if name == "ENTRYPOINT"]
    (rest,) = [words for name, words in instructions("Dockerfile.serve") if name == "CMD"]
    _, *words = [*json.loads(start), *json.loads(rest)]
    context = typer.main.get_command(app).make_context("dlrm-mtl", words, resilient_parsing=False)
    found, command, arguments = context.command.resolve_command(context, words)
    assert found == "serve"
    assert command is not None
    given = command.make_context("serve", arguments).params
    assert (given["bundle"], given["host"], given["port"], given["watch"]) == ("/bundles", "0.0.0.0", 8000, True)
