"""What README and the documents name exists: files, configurations, keys, commands and their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from dlrm_mtl.cli import app
from dlrm_mtl.config.load import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launchers/README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

# Files that the reader makes, and placeholders.
INVENTED = {"configs/shop.yaml", "configs/mine.yaml", "configs/kuairand_NAME.yaml", "configs/kuairand_A_debug.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_files_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(
        re.findall(r"(?<![\w/.])(?:configs|dlrm_mtl|docs|launchers|tests|benchmarks|requirements)/[\w./-]*[\w/]", text)
    )
    missing = [path for path in sorted(named - INVENTED) if not (ROOT / path).exists() and ROOT.joinpath(path).suffix]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_overrides_are_keys_of_a_configuration(name: str) -> None:
    for given in re.findall(r"--set[ =]((?:[a-z_]+\.)*[a-z_]{2,}=[^\s`\"]+)", (ROOT / name).read_text()):
        overrides = [item.replace("=S", "=1") for item in re.split(r",(?=[a-z_.]+=)", given)]
        load_config(ROOT / "configs/kuairand_mmoe.yaml", overrides)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert 0 < names["run"].metrics["is_click/auc"] < 1
    assert names["scores"].num_rows == 29_434


def test_the_launchers_help_names_keys_of_a_configuration() -> None:
    (given,) = re.findall(
        r"set: overrides of the configuration, as in ``(.*?)``", (ROOT / "launchers/train.py").read_text()
    )
    load_config(ROOT / "configs/kuairand_mmoe.yaml", re.split(r",(?=[a-z_.]+=)", given))


def command_lines(text: str) -> Iterator[str]:
    """Yield what follows ``dlrm-mtl`` in the code of a document, continued lines joined."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL) + re.findall(r"(?m)^    (?! )(.*)$", text)
    for code in [*blocks, *re.findall(r"`([^`\n]+)`", text)]:
        for line in code.splitlines():
            for match in re.finditer(r"(?:dlrm-mtl|-m dlrm_mtl)[ ]+(.*?)(?:\s#|[|;&>]|$)", line):
                yield match.group(1)


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_options_exist(name: str) -> None:
    for line in command_lines((ROOT / name).read_text()):
        command: click.Command = typer.main.get_command(app)
        path: list[str] = []
        words = line.split()
        while words and hasattr(command, "get_command") and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
            path.append(str(found.name))
        if hasattr(command, "get_command"):  # followed by a placeholder, such as `prepare NAME`
            continue
        options = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h", "--version"}
        for word in words:
            option = re.match(r"--[a-z][a-z-]*", word)
            assert option is None or option.group() in options, f"{line!r}: {' '.join(path)} has no {word}"
