"""Command lines in documents and help texts can be parsed, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from torch.distributed.run import get_args_parser
from torchx.specs.builders import _create_args_parser

from benchmarks.__main__ import BENCHMARKS
from dlrm_mtl.cli import app
from dlrm_mtl.config.load import load_config
from dlrm_mtl.experiments.config import is_sweep, read_sweep
from studies.__main__ import STUDIES
from tests.docs.pages import NAMES, ROOT, Piece, code_lines, spans

CONFIG = "configs/kuairand_mmoe.yaml"
STARTS = re.compile(r"(?:^|(?<=[\s;]))(?:\S*/)?(dlrm-mtl|torchrun|torchx|python -m|python|pytest|make)(?=\s|$)")


@cache
def commands() -> Any:
    """The group of all commands: click's, or typer's own copy of it, whichever typer has."""
    return typer.main.get_command(app)


def is_group(command: Any) -> bool:
    return hasattr(command, "list_commands")


def given(page: str) -> Iterator[tuple[Piece, list[str]]]:
    """The commands of a page: in code, and spans that have arguments."""
    for piece in [*code_lines(page), *(span for span in spans(page) if STARTS.match(span.text))]:
        text = re.sub(r"(\s#\s.*|\s{2,}#.*)$", "", piece.text)
        for part in re.split(r"\s(?:&&|\||;)\s|[|]\s", text):
            part = re.sub(r"^(\$ |[A-Z_]+=\S+ )*", "", part.strip())
            if STARTS.match(part):
                words = shlex.split(part, comments=True)
                yield piece, words[: next((at for at, word in enumerate(words) if word.startswith(">")), None)]


def parse(words: list[str], place: str) -> None:
    """Let the command line's own parser read ``words``, as far as the command goes."""
    words = ["1" if word in ("K", "N", "S") else word for word in words]
    command = commands()
    context = command.make_context("dlrm-mtl", [], resilient_parsing=True)
    while is_group(command):
        while words and words[0] in ("--plugin",):
            words = words[2:]
        if not words or words[0] in ("--version", "--help", "-h"):
            return
        if not re.fullmatch(r"[a-z][a-z_-]*", words[0]):  # a placeholder, as in `prepare NAME`
            known = {option for one in command.commands.values() for p in one.params for option in p.opts}
            assert {word for word in words if word.startswith("--")} <= known | {"--help", "--input", "--output"}, place
            return
        found = command.get_command(context, words[0])
        if found is None and "--plugin" not in words and words[0] == "coins":  # the adapter of docs/extending.md
            return
        assert found is not None, f"{place}: dlrm-mtl has no command '{words[0]}'"
        command, words = found, words[1:]
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
    try:
        command.make_context(command.name, list(words), resilient_parsing=len(words) == 0)
    except typer.Exit:  # after --help
        return
    except Exception as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        raise AssertionError(f"{place}: dlrm-mtl {command.name}: {said}") from None
    check_overrides(words, place)


def check_overrides(words: list[str], place: str) -> None:
    """Apply what ``--set`` is given to the configuration that the command names, or else to the main one."""
    config = next((word for word in words if word.endswith(".yaml") and (ROOT / word).is_file()), CONFIG)
    values = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--set", "--set-on-resume")]
    values += [word.split("=", 1)[1] for word in words if word.startswith("--set=")]
    overrides = [one for value in values for one in re.split(r",(?=[a-z_.]+=)", value) if not re.search("[A-Z]", one)]
    try:
        if is_sweep(ROOT / config):
            config = read_sweep(ROOT / config).config
        load_config(ROOT / config, overrides)
    except Exception as error:
        raise AssertionError(f"{place}: --set: {error}") from None


COMPONENTS = (
    "launchers/train.py:ddp",
    "launchers/bench.py:scaling",
    *(f"launchers/use.py:{name}" for name in ("doctor", "evaluate", "predict", "prepare")),
)


@cache
def component_options(component: str) -> set[str]:
    file, _, function = component.partition(":")
    spec = importlib.util.spec_from_file_location("launcher", ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = _create_args_parser(getattr(module, function))
    return {option for action in parser._actions for option in action.option_strings} | {"-j", "-h"}


def check_torchx(words: list[str], place: str) -> None:
    component = next((word for word in words if word.startswith("launchers/")), None)
    assert component in (None, *COMPONENTS), f"{place}: there is no {component}"
    if component is None:
        return
    at = words.index(component)
    ours = words[at + 1 : words.index("--") if "--" in words else None]
    unknown = (
        {re.split("=", word)[0] for word in ours if re.match("--?[a-z]", word)}
        - component_options(component)
        - {"--help"}
    )
    assert not unknown, f"{place}: {component} has no {', '.join(sorted(unknown))}"
    before = {word for word in words[:at] if word.startswith("-")}
    assert before <= {"-s", "-cfg", "--workspace", "--dryrun", "--log_level"}, f"{place}: {before}"
    config = ours[ours.index("--config") + 1] if "--config" in ours else CONFIG
    check_overrides([config, *ours], place)


@cache
def torchrun_options() -> set[str]:
    return {option for action in get_args_parser()._actions for option in action.option_strings}


def check_python(words: list[str], place: str) -> None:
    """Check what a python, torchrun or launcher command runs: a module or a script of this repository."""
    while words and words[0].startswith("-") and words[0] != "-m":
        option = words[0].partition("=")[0]
        assert option in torchrun_options() | {"-c"}, f"{place}: torchrun has no {option}"
        if option == "-c":
            return
        words = words[1 if "=" in words[0] or option == "--standalone" else 2 :]
    if not words or words[0].isupper():
        return
    if words[0] != "-m":
        assert (ROOT / words[0]).exists(), f"{place}: there is no {words[0]}"
        entry = ROOT / words[0] / "__main__.py" if (ROOT / words[0]).is_dir() else ROOT / words[0]
        missing = [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in entry.read_text()]
        assert not missing, f"{place}: {words[0]} has no {', '.join(missing)}"
    elif words[1:2] == ["dlrm_mtl"]:
        parse(words[2:], place)
    elif words[1:2] == ["benchmarks"]:
        unknown = [word for word in words[2:3] if word not in BENCHMARKS and not word.isupper()]
        assert not unknown, f"{place}: there is no benchmark '{unknown}'"
        known = {"--quick", "--json", "--svg"}
        if words[2:3] == ["scaling"]:
            known |= {"--network", "--html", "--compare", "--hardware", "--no-simulation"}
        assert {word for word in words if word.startswith("--")} <= known, place
    elif words[1:2] == ["studies"]:
        unknown = [word for word in words[2:3] if word not in STUDIES and not word.isupper()]
        assert not unknown, f"{place}: there is no study '{unknown}'"
        texts = [path.read_text() for path in (ROOT / "studies").rglob("*.py")]
        missing = [word for word in words if word.startswith("--") and word not in (*known_options(texts), "--help")]
        assert not missing, f"{place}: no study has {', '.join(missing)}"
    elif words[1:2] == ["dlrm_mtl.launcher"]:
        check_python(words[2:], place)
    elif words[1] in ("pip", "venv"):
        return
    else:
        if words[1] == "pytest":
            check_pytest(words[2:], place)
        assert importlib.util.find_spec(words[1]), f"{place}: there is no module {words[1]}"


def known_options(texts: list[str]) -> set[str]:
    return {option for text in texts for option in re.findall(r'"(--[a-z-]+)"', text)}


def check_pytest(words: list[str], place: str) -> None:
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), f"{place}: there is no {word}"
    if "-k" in words:
        name = words[words.index("-k") + 1]
        texts = [(ROOT / word).read_text() for word in words if word.endswith(".py")]
        assert any(re.search(rf"{name}", text) for text in texts), f"{place}: no test is named {name}"


@cache
def targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[:1]
    return set(phony.split())


def check(words: list[str], place: str) -> None:
    program = words[0].rpartition("/")[2]
    if program == "dlrm-mtl":
        parse(words[1:], place)
    elif program == "torchx":
        check_torchx(words, place)
    elif program in ("python", "torchrun"):
        check_python(words[1:], place)
    elif program == "pytest":
        check_pytest(words[1:], place)
    elif program == "make" and len(words) > 1:
        named = [word for word in words[1:] if re.fullmatch("[a-z-]+", word)]
        assert set(named) <= targets(), f"{place}: the Makefile has no {', '.join(set(named) - targets())}"
        for word in words[1:]:
            if word.startswith("ARGS="):
                inner = word[5:].split()
                if "-j" in inner or "--set" in inner or "--config" in inner:
                    check_torchx(["torchx", "launchers/train.py:ddp", *inner], place)


@pytest.mark.parametrize("page", NAMES)
def test_commands_of_a_page_are_read(page: str) -> None:
    for piece, words in given(page):
        check(words, piece.place)


def test_commands_in_docstrings_are_read() -> None:
    """Docstrings, help texts among them, and the first lines of configurations."""
    for folder, pattern in (("dlrm_mtl", "*.py"), ("launchers", "*.py"), ("studies", "*.py"), ("configs", "*.yaml")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                for text in re.findall(r"``?((?:dlrm-mtl|torchrun|torchx run) [^`\"]*)``?", line):
                    check(shlex.split(text), f"{path.relative_to(ROOT)}:{number}")
                if path.suffix == ".yaml" and (found := re.match(r"#\s+(dlrm-mtl .*)", line)):
                    check(shlex.split(found.group(1)), f"{path.relative_to(ROOT)}:{number}")


def test_overrides_in_help_texts_are_keys() -> None:
    (component,) = re.findall(r"set: overrides of the configuration, as in ``(.*?)``", read("launchers/train.py"))
    check_overrides(["--set", component], "launchers/train.py")
    for name, command in every_command(commands(), "dlrm-mtl"):
        for parameter in command.params:
            for key in re.findall(
                r"(?:such as|as in) ([a-z_.]+=\S+?)[.,]?(?:\s|$)", getattr(parameter, "help", "") or ""
            ):
                check_overrides(["--set", key], f"{name} {parameter.name}")


def every_command(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    if is_group(command):
        context = command.make_context(name, [], resilient_parsing=True)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from every_command(found, f"{name} {inner}")


def test_options_and_paths_in_help_texts_exist() -> None:
    everything = list(every_command(commands(), "dlrm-mtl"))
    options = {option for _, command in everything for parameter in command.params for option in parameter.opts}
    for name, command in everything:
        for text in [command.help or "", *(getattr(parameter, "help", "") or "" for parameter in command.params)]:
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
                assert option in options | torchrun_options(), f"{name}: its help names {option}, which no command has"
            for path in re.findall(r"(?:configs|docs|launchers)/[\w./-]*\w", text):
                assert (ROOT / path).exists(), f"{name}: its help names {path}, which does not exist"


def read(name: str) -> str:
    return Path(ROOT, name).read_text()
