"""Save in progress: works of every process, one after the other, with an agreement of all processes between two of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.distributed as dist

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import gather_objects

Works = Generator[Callable[[], Any], list[Any], None]
"""Works of a save. A work runs on every process without communication; the generator gets the results of all, by rank."""


class Save:
    """Runs ``works``. Every process must make it, and call its methods after the same steps.

    A work may run in a thread. Only the thread that calls the methods communicates, so that collective operations of a save
    never meet those of a training step.

    Args:
        works: works of the save, the same ones on every process.
        background: run each work in a thread while training goes on.
    """

    def __init__(self, works: Works, background: bool) -> None:
        self._works = works
        self._background = background
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._begin(next(works))

    def poll(self) -> bool:
        """Go on with the next work if all processes are done with this one. Return True after the last one.

        Raises:
            UserError: a work failed on a process; raised on all processes.
        """
        done = torch.tensor(0 if self._thread is not None and self._thread.is_alive() else 1)
        dist.all_reduce(done, dist.ReduceOp.MIN)
        return bool(done) and self._next()

    def finish(self) -> None:
        """Wait for the end of all works; raises as :meth:`poll` does."""
        while not self._next():
            pass

    def abandon(self) -> None:
        """Wait for the work of this process, and do no other one; to be called where processes may not agree any more."""
        if self._thread is not None:
            self._thread.join()
        self._works.close()

    def _begin(self, work: Callable[[], Any]) -> None:
        self._result = self._error = None
        if not self._background:
            self._run(work)
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._error = error

    def _next(self) -> bool:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and not isinstance(self._error, UserError):
            raise self._error
        outcomes = gather_objects((self._result, None if self._error is None else str(self._error)))
        for _, mistake in outcomes:
            if mistake is not None:
                self._works.close()
                raise UserError(mistake)
        try:
            work = self._works.send([result for result, _ in outcomes])
        except StopIteration:
            return True
        self._begin(work)
        return False
