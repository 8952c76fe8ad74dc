"""Time to plan tables on a cluster: the planner by the cost model against TorchRec's, and the steps that both plans give.

Tables have 100 to 30 million rows (log-uniform), 16 to 128 columns and 1, 5 or 20 ids a row; a host is `h100x8`. TorchRec's
planner has the types of `sharding: auto`, table_wise, row_wise and table_row_wise; ours may choose any. Each plan is made in a
process of its own, which is ended after LIMIT seconds.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.embeddings.rules.rowwise_adagrad import RowWiseAdagrad
from dlrm_mtl.embeddings.tables import EmbeddingTable, build_tables
from dlrm_mtl.embeddings.torchrec.plan import RESERVED, Processes, Room, describe_plan, foresee_plan
from dlrm_mtl.scaling.cost import step_time
from dlrm_mtl.scaling.hardware import load_hardware
from dlrm_mtl.scaling.options import possible_cuts
from dlrm_mtl.scaling.placement import placement_of
from dlrm_mtl.scaling.planner import plan_tables
from dlrm_mtl.scaling.rank_work import rank_works
from dlrm_mtl.scaling.tables import DenseLoad, Load, Popularity, StateSize, TableLoad
from dlrm_mtl.training.build import quieten

LIMIT = 600.0
"""Seconds after which a planner is ended."""
MOST_SHARDS = 200_000
"""Largest number of tables times processes for which TorchRec's planner is tried; it makes an object for every shard."""
PER_HOST = 8
ROWS_PER_PROCESS = 512


def random_load(tables: int, processes: int) -> Load:
    """Tables of many sizes, and a dense part of ten million parameters."""
    rng = np.random.default_rng(tables)
    loads = []
    for number in range(tables):
        rows = int(10 ** rng.uniform(2, 7.5))
        dim, ids = int(rng.choice([16, 32, 64, 128])), float(rng.choice([1, 1, 1, 5, 20]))
        loads.append(TableLoad(f"table_{number}", rows, dim, 1, ids, Popularity.uniform(rows)))
    dense = DenseLoad(parameter_bytes=40_000_000, flops=60_000_000, held_bytes=160_000_000, tasks=3)
    return Load(loads, dense, StateSize(per_row=1, per_element=0), rows=ROWS_PER_PROCESS * processes)


def plan(planner: str, tables: int, processes: int, answer: Connection) -> None:
    """Plan in this process; send the seconds of its processor that it took, and the expected seconds of a step."""
    quieten()
    load, hardware = random_load(tables, processes), load_hardware("h100x8")
    start = time.process_time()
    if planner == "ours":
        cuts = {table.name: possible_cuts(table, processes, PER_HOST) for table in load.tables}
        room = (1 - RESERVED) * hardware.memory_per_process - load.dense.held_bytes
        placement = plan_tables(hardware, load, cuts, processes, PER_HOST, room)
    else:
        configs = [EmbeddingTable(table.name, table.rows, table.dim, [table.name]) for table in load.tables]
        room_of_gpu = Room(hardware.memory_per_host, hardware.memory_per_process)
        found = foresee_plan(
            build_tables(configs), configs, ShardingConfig(), Processes(processes, PER_HOST), room_of_gpu, load.rows
        )
        placement = placement_of(describe_plan(found, configs, RowWiseAdagrad(learning_rate=0.1).states, processes))
    taken = time.process_time() - start
    works = rank_works(load, placement, processes, PER_HOST)
    answer.send((taken, step_time(hardware, works, processes // PER_HOST).total))


def measured(planner: str, tables: int, processes: int) -> tuple[float, float] | None:
    """Seconds of the processor for planning, and seconds of a step; None if it took longer than LIMIT."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    worker = context.Process(target=plan, args=(planner, tables, processes, sending))
    worker.start()
    sending.close()
    try:
        if not receiving.poll(LIMIT):
            return None
        taken, step = receiving.recv()
        return float(taken), float(step)
    finally:
        worker.kill()
        worker.join()


def run(quick: bool) -> dict[str, Any]:
    """Plan every case by both planners."""
    cases = [(100, 64)] if quick else [(100, 64), (1000, 64), (100, 1024), (1000, 1024)]
    figures: dict[str, Any] = {}
    print(f"{'tables x processes':20} {'planner':10} {'planning, CPU':>14} {'expected step':>14}")
    for tables, processes in cases:
        for planner in ("ours", "torchrec") if tables * processes <= MOST_SHARDS else ("ours",):
            result = measured(planner, tables, processes)
            texts = (f"{result[0]:.1f} s", f"{result[1] * 1e3:.2f} ms") if result else (f"> {LIMIT:.0f} s", "")
            print(f"{f'{tables} x {processes}':20} {planner:10} {texts[0]:>14} {texts[1]:>14}", flush=True)
            figures[f"{tables}x{processes}/{planner}"] = result
    return {"seconds": figures}
