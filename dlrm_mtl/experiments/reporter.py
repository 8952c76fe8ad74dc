"""Listener of a training that tells its experiment the validation metrics, and stops when it is told to."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from dlrm_mtl.training.events import Evaluation, Listener


class Pruned(Exception):
    """The experiment has stopped the training early."""


class Reporter(Listener):
    """Sender of every evaluation on the validation split.

    Args:
        connection: connection to the experiment's process; each message is answered by True to stop.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_evaluation(self, event: Evaluation) -> None:
        """Send the metrics, and wait for the answer.

        Raises:
            Pruned: the experiment says so.
        """
        if event.split != "validation":
            return
        try:
            self.connection.send(("evaluated", event.step, event.metrics))
            stop = self.connection.recv()
        except (EOFError, OSError):  # the experiment was killed: save, and end after the current step
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if stop:
            raise Pruned(f"stopped after step {event.step}: below the median of earlier trainings")
