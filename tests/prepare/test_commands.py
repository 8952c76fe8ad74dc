"""``dlrm-mtl prepare``: its commands are the adapters, its options their parameters."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from dlrm_mtl.cli import app
from dlrm_mtl.prepare import ADAPTERS
from dlrm_mtl.prepare.commands import as_command
from dlrm_mtl.prepare.common.io import Progress


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["prepare", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    return re.sub(r"\s+", " ", result.output)


def test_all_adapters_are_listed_with_a_line() -> None:
    text = shown("--help")
    for adapter in ADAPTERS:
        assert re.search(rf"\b{adapter.name}\b", text), adapter.name
        assert (inspect.getdoc(adapter.part) or "").split()[0] in text


@pytest.mark.parametrize("name", ADAPTERS.names())
def test_help_teaches_every_option(name: str) -> None:
    text = shown(name, "--help")
    parameters = inspect.signature(ADAPTERS[name].part).parameters
    assert "progress" in parameters
    for parameter in parameters:
        assert (f"--{parameter.replace('_', '-')}" in text) == (parameter != "progress"), parameter


def test_parameters_become_options(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def prepare(
        output: Path,
        *,
        rows: Annotated[int, typer.Option(min=1, help="How many.")] = 7,
        progress: Progress = lambda what, done: None,
    ) -> str | None:
        """Rows out of nothing.

        More about it.
        """
        seen.append((output, rows))
        progress("working", 1.0)
        return "well done" if rows == 8 else None

    single = typer.Typer()
    single.command()(as_command(prepare))
    run = CliRunner().invoke
    text = run(single, ["--help"]).output
    assert "Rows out of nothing." in text
    assert "More about it" not in text
    assert "--input" not in text
    assert "x: ready" in run(single, ["--output", "x"]).output
    assert "well done" in run(single, ["--output", "x", "--rows", "8"]).output
    assert seen == [(Path("x"), 7), (Path("x"), 8)]
    assert run(single, ["--output", "x", "--rows", "0"]).exit_code == 2


def test_the_command_line_imports_no_adapter_before_it_is_used() -> None:
    program = (
        "import sys, dlrm_mtl.cli; print([m for m in ('duckdb', 'pyarrow', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
