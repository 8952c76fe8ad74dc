"""The phases of a training step, in its order."""

PHASES = {
    "waiting for data": "the next rows, from the reader's threads",
    "weights of the rows": "labels, weights, and their sums over processes",
    "rows of ids": "rows of unbounded ids, asked from their owners",
    "input exchange": "ids, to the processes that hold their rows",
    "lookup": "sums of rows, from the tables of this process",
    "output exchange": "vectors, back to the processes of the batch",
    "embeddings": "vectors of all features, side by side",
    "dense": "forward pass of the dense part",
    "losses": "losses of the tasks",
    "backward": "backward pass of the dense part, DDP's sums included",
    "backward of a task": "backward pass of the dense part, once for each task",
    "tables: backward of tasks": "gradients of tasks, to the processes that hold the rows",
    "tables: inner products": "inner products of the tasks' row gradients",
    "tables: combine tasks": "combined row gradients",
    "balancing": "coefficients of the tasks, sums of dense gradients",
    "gradient exchange": "gradients of vectors, to the processes that hold the rows; end of DDP's sums",
    "row gradients": "gradient of each touched row, from those of its bags",
    "row statistics": "mean squares of row gradients, over column shards",
    "factors": "largest safe factor of each table, finiteness",
    "agreement": "the step's one all-reduce, waiting for the others included",
    "apply": "update of the touched rows",
    "dense optimizer": "update of all other parameters",
}
"""Phases in the order of a step, with what happens in each."""
