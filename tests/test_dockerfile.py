"""The Dockerfile names files that are there, for both builds; no Docker engine is asked for."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", "")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_what_is_copied_is_there(build: str) -> None:
    copied = [words for name, words in instructions() if name == "COPY"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert len(copied) == 5
    for words in copied:
        *sources, _ = shlex.split(words.replace("${BUILD}", build))
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch(source, pattern.removeprefix("**/")) for pattern in ignored), source


def test_it_has_what_the_package_is_built_from() -> None:
    copied = {source for name, words in instructions() if name == "COPY" for source in shlex.split(words)[:-1]}
    assert {"pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in", "LICENSE", "dlrm_mtl"} <= copied


def test_its_python_is_one_that_is_supported() -> None:
    (base,) = [words for name, words in instructions() if name == "FROM"]
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert version is not None
    assert 10 <= int(version.group(1)) <= 13
