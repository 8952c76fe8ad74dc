"""The command ``dlrm-mtl prepare``: one subcommand for every adapter, made from its function's signature."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare import ADAPTERS

FOLDERS = {
    "input": Annotated[Path, typer.Option(help="Folder with the raw files.")],
    "output": Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
}
"""What the two parameters are that most adapters have, where an adapter says nothing else."""


class AdapterGroup(TyperGroup):
    """A group whose commands are the adapters, those of plugins included."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all adapters: what works on anybody's data first."""
        load_plugins([], "plugins")
        return sorted(ADAPTERS.names(), key=lambda name: (name != "table", name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one adapter; raises :class:`UserError` if there is none of that name."""
        if cmd_name not in (names := self.list_commands(ctx)):
            raise UserError(f"prepare: there is no data set {cmd_name!r}; {suggest(cmd_name, names)}.")
        single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        single.command(cmd_name)(as_command(ADAPTERS[cmd_name].part))
        return typer.main.get_command(single)


def as_command(adapter: Callable[..., str | None]) -> Callable[..., None]:
    """A function with the parameters of ``adapter`` but ``progress``, which shows a bar while it runs and says when it is done.

    What it returns is printed; if that is nothing, where the data set is.
    """
    signature = inspect.signature(adapter)
    hints = get_type_hints(adapter, include_extras=True)
    parameters = []
    for name, parameter in signature.parameters.items():
        if name != "progress":
            plain = name in FOLDERS and hints[name] is Path
            annotation = FOLDERS[name] if plain else hints[name]
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))

    def command(**options: Any) -> None:
        with _progress() as progress:
            said = adapter(**options, progress=progress)
        typer.echo(f"{options['output']}: ready; name it as data.path in a configuration" if said is None else said)

    command.__doc__ = (inspect.getdoc(adapter) or "").split("\n\n")[0]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A function that shows a progress bar, from its first call on."""
    from dlrm_mtl.console import Bar

    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def progress(what: str, done: float) -> None:
            if not bars:
                bars.append(stack.enter_context(Bar("prepare", 100, shown=True)))
            bars[0].update(round(100 * done), what)

        yield progress
