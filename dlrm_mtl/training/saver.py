"""Saving checkpoints while a run trains, and what happens when one cannot be saved."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch.distributed as dist

from dlrm_mtl.checkpoint.checkpoints import Checkpoints, SaveError
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.checkpoint.tensors import Checkpointed
from dlrm_mtl.config.training import TrainingConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.training import events

logger = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of a run. Every process calls the methods after the same steps.

    Args:
        checkpoints: checkpoints of the run.
        tensors: holder of the tensors.
        progress: state of the run. After a failed save it names the best checkpoint that exists.
        config: ``training`` part of the configuration.
        tell: tells listeners of events.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        tensors: Checkpointed,
        progress: RunState,
        config: TrainingConfig,
        tell: Callable[[events.Event], None],
    ) -> None:
        self.checkpoints = checkpoints
        self.tensors = tensors
        self.progress = progress
        self.config = config
        self.tell = tell
        self.error: SaveError | None = None
        """Error of the last save, if it failed."""
        self._best = (progress.best_step, progress.best_value)

    def save(self, last: bool = False, signal: bool = False) -> None:
        """Write a checkpoint, in the background while training goes on.

        Args:
            last: the run ends here: an error is raised.
            signal: the run stops here: an error is only noted.

        Raises:
            UserError: the checkpoint cannot be written, and the run is not to go on without it.
        """
        self.finish(signal)
        self.tell(events.CheckpointStart(self.progress.step))
        background = self.config.async_checkpoints and not (last or signal)
        stop = last or self.config.on_save_error == "stop"
        self._attempt(lambda: self.checkpoints.save(self.tensors, self.progress, background), stop and not signal)

    def poll(self) -> None:
        """Go on with a checkpoint that is written in the background, without waiting; raises as :meth:`save` does."""
        self._attempt(self.checkpoints.poll, self.config.on_save_error == "stop")

    def finish(self, signal: bool = False) -> None:
        """Wait for a checkpoint that is written in the background. Before an evaluation: a failure changes what is the best.

        Args:
            signal: the run stops here: an error is only noted.
        """
        enter_phase(f"the checkpoint of step {self.progress.step}", lasting=True)
        self._attempt(self.checkpoints.finish, self.config.on_save_error == "stop" and not signal)

    def _attempt(self, action: Callable[[], RunState | None], stop: bool) -> None:
        try:
            saved = action()
        except SaveError as error:
            self._failed(error, stop)
            return
        if saved is not None:
            self.error = None
            self._best = (saved.best_step, saved.best_value)
            self.tell(events.CheckpointSaved(saved.step))

    def _failed(self, error: SaveError, stop: bool) -> None:
        self.error = error
        if self.progress.best_step == error.step:
            self.progress.best_step, self.progress.best_value = self._best
        self.tell(events.CheckpointFailed(error.step, str(error)))
        if stop:
            how = ": go on from it with --resume" if error.newest else ""
            raise UserError(f"{str(error).rstrip('.')}{how}.") from None
        if dist.get_rank() == 0:
            logger.warning("WARNING: step %d is not saved, and training goes on: %s", error.step, error)
