"""One process of a job of `tests.chaos.job`: ``dlrm-mtl`` in a process that its agent has forked."""

import signal
import sys

from dlrm_mtl.cli import main

for number in (signal.SIGINT, signal.SIGTERM):  # the agent's handlers came with the fork
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
try:
    main()
except SystemExit as left:
    if left.code:  # a worker that ends well must return: its agent waits for a result
        raise
sys.stdout.flush()
sys.stderr.flush()
