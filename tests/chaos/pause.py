"""A plugin whose listener pauses after each step, so that a small training leaves the cores to the server."""

from __future__ import annotations

import time

import dlrm_mtl

SECONDS = 0.1


@dlrm_mtl.register("listener", "pause")
class Pause(dlrm_mtl.Listener):
    """A pause after each step."""

    every_process = True

    def on_step(self, event: dlrm_mtl.events.Step) -> None:
        time.sleep(SECONDS)
