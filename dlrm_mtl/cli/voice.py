"""What a process of a job prints."""

from __future__ import annotations

import functools
import logging
import os
import sys


def speaks() -> bool:
    """True if this process prints for all processes of its host."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


class _Remarks(logging.Handler):
    """Shows what the package logs: remarks plainly on the first process's standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, above the progress bar if there is one."""
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            print(text, file=sys.stderr, flush=True)
        elif os.environ.get("RANK", "0") == "0":
            console = sys.modules.get("dlrm_mtl.console")  # without it there is no bar
            say = console.say if console else functools.partial(print, flush=True)
            say(text)


def show_remarks() -> None:
    """Let the package's logger print, once, however often the command line is called in a process."""
    logger = logging.getLogger("dlrm_mtl")
    if not any(isinstance(handler, _Remarks) for handler in logger.handlers):
        logger.addHandler(_Remarks())
    logger.setLevel(logging.INFO)
    logger.propagate = False
