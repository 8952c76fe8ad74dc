"""The command ``dlrm-mtl prepare``: one subcommand for every adapter, made from its function's signature."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare import ADAPTERS, ready

FOLDERS = {
    "input": Annotated[Path, typer.Option(help="Folder with the raw files.")],
    "output": Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
}
"""Annotations of the two parameters of most adapters, used if an adapter has none of its own."""


class AdapterGroup(TyperGroup):
    """Command group whose commands are the adapters, including those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all adapters, beginning with ``table``, which works on any data."""
        load_plugins([], "plugins")
        return sorted(ADAPTERS.names(), key=lambda name: (name != "table", name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Command of one adapter; raises :class:`UserError` if there is no adapter of that name."""
        if cmd_name not in (names := self.list_commands(ctx)):
            raise UserError(f"prepare: there is no data set {cmd_name!r}; {suggest(cmd_name, names)}.")
        single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        single.command(cmd_name)(as_command(ADAPTERS[cmd_name].part))
        return typer.main.get_command(single)


def as_command(adapter: Callable[..., str | None]) -> Callable[..., None]:
    """Make a command from ``adapter``: a function with its parameters except ``progress`` that shows a bar while it runs.

    It prints the adapter's result, or the place of the data set if that is None. A remote output is written locally and
    uploaded.
    """
    hints = get_type_hints(adapter, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(adapter).parameters.items():
        if name != "progress":
            plain = name in FOLDERS and hints[name] is Path
            annotation = _as_text(FOLDERS[name] if plain else hints[name])
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
    paths = [parameter.name for parameter in parameters if parameter.annotation != hints[parameter.name]]

    def command(**options: Any) -> None:
        output = options["output"]
        options |= {name: _local(name, options[name]) for name in paths if name != "output"}
        with _progress() as progress, _staged(output, progress) as local:
            said = adapter(**{**options, "output": local}, progress=progress)
        if said is None:
            said = ready(local)
        typer.echo(said if local is None else said.replace(str(local), output))

    command.__doc__ = (inspect.getdoc(adapter) or "").split("\n\n")[0]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_TEXTS: dict[Any, Any] = {
    Path: str,
    Path | None: str | None,
    list[Path]: list[str],
    list[Path] | None: list[str] | None,
}


def _as_text(hint: Any) -> Any:
    """Annotation of an option, with str instead of Path: Path would remove the second slash of a URI."""
    kind, *options = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if kind not in _TEXTS:
        return hint
    option = copy.copy(options[0]) if options else typer.Option()
    option.metavar = option.metavar or "<path>"
    return Annotated[_TEXTS[kind], option]


def _local(name: str, value: Any) -> Any:
    """Path, or list of paths, of an option; raises :class:`UserError` for a URI."""
    if isinstance(value, list):
        return [_local(name, one) for one in value]
    if isinstance(value, str) and "://" in value:
        raise UserError(f"prepare: --{name} {value}: only local files are read; copy them to this machine.")
    return Path(value) if isinstance(value, str) else value


@contextlib.contextmanager
def _staged(output: str | None, progress: Callable[[str, float], None]) -> Iterator[Path | None]:
    """Local path to write for ``output``, which may be a URI."""
    from dlrm_mtl.data.spec import DATASET_FILE
    from dlrm_mtl.storage.staged_output import staged_output

    if output is None:
        yield None
        return
    with staged_output(output, DATASET_FILE, told=lambda done: progress("uploading", done)) as local:
        yield local


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Function that shows a progress bar from its first call on."""
    from dlrm_mtl.console import Bar

    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def progress(what: str, done: float) -> None:
            if not bars:
                bars.append(stack.enter_context(Bar("prepare", 100, shown=True)))
            bars[0].update(round(100 * done), what)

        yield progress
