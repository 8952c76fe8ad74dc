"""The claim of a job on a run's folder: it decides if the run is continued, and takes the lock."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.history import Starter


class Claim:
    """Holds a run's folder inside a ``with`` block, from :meth:`take` on; for a continued run, from the start.

    To be made on every process; the first one holds the lock.

    Args:
        folder: of the run.
        resume: True if the user asked to continue a run in it.

    Raises:
        UserError: the folder may not be used, or another job writes into it.
    """

    def __init__(self, folder: RunFolder, resume: bool) -> None:
        self.folder = folder
        self.resume = resume
        self.starter = Starter()
        # After a failure, or when a host joins, the launcher starts all processes again with the same command: then the run
        # is continued.
        self.restarted = first_process_only(lambda: self.starter.began(folder))
        self.lock = folder.lock(self.restarted)
        self._held = ExitStack()
        self.goes_on = False
        """True if a run in the folder is to be continued, by the user's wish or after a restart."""

    def __enter__(self) -> Claim:
        def begin() -> bool:
            goes_on = self.folder.check(self.resume, self.restarted)
            if goes_on and self.folder.holds_run():
                self._held.enter_context(self.lock)
            return goes_on

        self.goes_on = first_process_only(begin)
        return self

    def take(self) -> None:
        """Take the lock, unless it is held, before anything is written; for the first process."""
        if self.lock.holder is None:
            self._held.enter_context(self.lock)
            self.folder.check(self.resume, self.restarted)  # another job may have started meanwhile

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._held.close()
