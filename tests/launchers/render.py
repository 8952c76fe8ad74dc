"""Prints, as a line of JSON each, what torchx would send to a scheduler: ``python render.py``, with jobs on stdin.

Input: ``[[scheduler, component, [argument, ...], {option: value}], ...]``.
"""

from __future__ import annotations

import json
import sys

from torchx.runner import get_runner
from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization

if __name__ == "__main__":
    runner = get_runner("torchx")
    for scheduler, component, arguments, options in json.load(sys.stdin):
        request = runner.dryrun_component(component, arguments, scheduler, cfg=options).request
        if scheduler == "kubernetes":
            print(json.dumps(sanitize_for_serialization(request.resource)))
        else:
            print(json.dumps({"name": request.name, "queue": request.queue, "job_def": request.job_def}))
