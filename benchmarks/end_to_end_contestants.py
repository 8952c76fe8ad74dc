"""The contestants of ``python -m benchmarks end-to-end``, each in a process of its own that takes steps when it is told to.

Baselines read Parquet with Arrow in a thread, as many batches ahead as this project, and do not shuffle.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from benchmarks.end_to_end_jobs import Columns, Job, columns, configuration
from benchmarks.huge_pages import use_huge_pages
from benchmarks.row_pass import compiled_pass

PREFETCH = 4


@dataclass(frozen=True)
class Setting:
    """How a contestant runs."""

    threads: int
    compiled: bool = False
    joint: bool = False
    """Experts as one matrix product instead of a loop; baselines only."""

    def text(self) -> str:
        """The setting in a few words."""
        words = [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        words += ["torch.compile"] * self.compiled + ["joint experts"] * self.joint
        return ", ".join(words)


def serve(contestant: str, job: Job, data: str, setting: Setting, pipe: Connection) -> None:
    """Main function of a contestant's process: for every pair of steps and threads received, take the steps and send the time.

    The time is a pair of seconds, on the wall and of the processor.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the pipe ends this process
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(setting.threads)
    {"ours": _ours, "compiled": _ours, "TorchRec": _torchrec, "PyTorch": _pytorch, "limit": _limit}[contestant](
        job, data, setting, pipe
    )


def _ours(job: Job, data: str, setting: Setting, pipe: Connection) -> None:
    """The training itself, as `dlrm-mtl train` runs it; a listener holds it between turns."""
    import dlrm_mtl

    class Turns(dlrm_mtl.Listener):
        left = 0
        start = (0.0, 0.0)

        def wait(self) -> None:
            self.left, self.start = _next(pipe), _clocks()

        def on_start(self, event: Any) -> None:
            self.wait()

        def on_step(self, event: Any) -> None:
            self.left -= 1
            if self.left == 0:
                pipe.send(_since(self.start))
                self.wait()

    with tempfile.TemporaryDirectory() as folder:
        dlrm_mtl.train(configuration(job, data, setting.compiled), folder, listeners=[Turns()], progress=False)


def _next(pipe: Connection) -> int:
    """Number of steps to take, after setting the threads; ends the process when the benchmark has ended."""
    try:
        request: tuple[int, int] | None = pipe.recv()
    except EOFError:
        request = None
    if request is None:
        os._exit(0)
    steps, threads = request
    torch.set_num_threads(threads)
    return steps


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    wall, processor = _clocks()
    return wall - start[0], processor - start[1]


def _take(step: Callable[[], None], pipe: Connection) -> None:
    while True:
        steps = _next(pipe)
        start = _clocks()
        for _ in range(steps):
            step()
        pipe.send(_since(start))


# ---- data of the baselines ----

Part = tuple[list[np.ndarray], list[np.ndarray], Tensor, Tensor]
"""Ids and numbers of ids of each feature; dense [B, N]; labels [B, T]."""


def _read(columns: Columns, batch: int) -> Iterator[Part]:
    names = [*columns.sparse, *columns.dense, *columns.labels]
    while True:
        for path in columns.files:
            for table in pq.ParquetFile(path).iter_batches(batch, columns=names, use_threads=False):
                if table.num_rows == batch:
                    yield _part(table, columns)


def _part(table: pa.RecordBatch, columns: Columns) -> Part:
    ids, lengths = [], []
    for name in columns.sparse:
        column = table.column(name)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            counts = np.diff(column.offsets.to_numpy())
            values = column.flatten()
        else:
            counts, values = np.ones(len(column), np.int32), column.fill_null(0)
        ids.append(values.to_numpy(zero_copy_only=False).astype(np.int64))
        lengths.append(counts.astype(np.int32))
    dense = np.empty((table.num_rows, len(columns.dense)), np.float32)
    for number, (name, (mean, std)) in enumerate(columns.dense.items()):
        values = table.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
        dense[:, number] = np.nan_to_num((values - mean) / std)
    labels = [table.column(name).fill_null(0).to_numpy(zero_copy_only=False) for name in columns.labels]
    return ids, lengths, torch.from_numpy(dense), torch.from_numpy(np.stack(labels, axis=1).astype(np.float32))


def _ahead(parts: Iterator[Any]) -> Iterator[Any]:
    waiting: queue.Queue[Any] = queue.Queue(PREFETCH)

    def fill() -> None:
        for part in parts:
            waiting.put(part)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield waiting.get()


# ---- dense part of the baselines ----


class Mixture(nn.Module):
    """Multi-gate mixture of experts, as public implementations write it, or with all experts' first layers joined."""

    def __init__(self, width: int, job: Job, joint: bool) -> None:
        super().__init__()
        self.count, self.joint = job.experts, joint and len(job.layers) == 1
        if self.joint:
            self.first = nn.Linear(width, job.experts * job.layers[0])
            self.norm = nn.LayerNorm(job.layers[0]) if job.norm else nn.Identity()
            self.drop = nn.Dropout(0.1 if job.norm else 0.0)
            self.gate = nn.Linear(width, len(job.tasks) * job.experts)
        else:
            self.experts = nn.ModuleList(_stack(width, job.layers, job.norm) for _ in range(job.experts))
            self.gates = nn.ModuleList(nn.Linear(width, job.experts) for _ in job.tasks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One [B, d] per task."""
        if self.joint:
            experts = self.drop(torch.relu(self.norm(self.first(x).unflatten(1, (self.count, -1)))))
            gates = self.gate(x).unflatten(1, (-1, self.count)).softmax(dim=2)
            return list(torch.einsum("bte,bed->btd", gates, experts).unbind(1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [(gate(x).softmax(dim=1).unsqueeze(2) * outputs).sum(dim=1) for gate in self.gates]


def _stack(width: int, layers: tuple[int, ...], norm: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for out in layers:
        parts += [nn.Linear(width, out), *([nn.LayerNorm(out)] if norm else []), nn.ReLU()]
        parts += [nn.Dropout(0.1)] if norm else []
        width = out
    return nn.Sequential(*parts)


class DensePart(nn.Module):
    """Cross layers, mixture of experts, towers, and the sum of the tasks' losses."""

    def __init__(self, width: int, job: Job, joint: bool) -> None:
        from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

        super().__init__()
        if job.rank is None:
            self.cross: nn.Module = CrossNet(width, job.cross_layers)
        else:
            self.cross = LowRankCrossNet(width, job.cross_layers, job.rank)
        self.mixture = Mixture(width, job, joint)
        self.towers = nn.ModuleList(
            nn.Sequential(_stack(job.layers[-1], job.tower, job.norm), nn.Linear(job.tower[-1], 1)) for _ in job.tasks
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss, from features [B, W] and labels [B, T]."""
        tasks = self.mixture(self.cross(features))
        logits = torch.cat([tower(task) for tower, task in zip(self.towers, tasks, strict=True)], dim=1)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=0).sum()


def _width(job: Job, columns: Columns) -> int:
    return len(columns.sparse) * job.dim + len(columns.dense)


# ---- baselines ----


def _torchrec(job: Job, data: str, setting: Setting, pipe: Connection) -> None:
    """DistributedModelParallel, FBGEMM's row-wise AdaGrad, and a loop by hand."""
    import torch.distributed as dist
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    found = columns(job, data)
    pooling = PoolingType.MEAN if job.mean else PoolingType.SUM
    configs = [
        EmbeddingBagConfig(
            name=table,
            num_embeddings=rows,
            embedding_dim=job.dim,
            pooling=pooling,
            feature_names=[feature for feature, owner in found.sparse.items() if owner == table],
        )
        for table, rows in found.tables.items()
    ]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
            self.dense = DensePart(_width(job, found), job, setting.joint)
            if setting.compiled:
                self.dense.compile()

        def forward(self, sparse: KeyedJaggedTensor, dense: Tensor, labels: Tensor) -> Tensor:
            features = self.tables(sparse).values()
            loss: Tensor = self.dense(torch.cat([features, dense], dim=1) if dense.shape[1] else features, labels)
            return loss

    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1})
    model = DistributedModelParallel(Model(), device=torch.device("cpu"), sharders=[sharder])  # type: ignore[list-item]
    dense = [parameter for name, parameter in model.named_parameters() if ".tables." not in name]
    optimizer = torch.optim.Adagrad(dense, lr=0.01, fused=True)
    keys = list(found.sparse)

    def parts() -> Iterator[tuple[KeyedJaggedTensor, Tensor, Tensor]]:
        for ids, lengths, numbers, labels in _read(found, job.batch):
            values, counts = torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(lengths))
            yield KeyedJaggedTensor(keys, values, lengths=counts, stride=job.batch), numbers, labels

    batches = _ahead(parts())

    def step() -> None:
        optimizer.zero_grad()
        model(*next(batches)).backward()
        optimizer.step()

    _take(step, pipe)


def _pytorch(job: Job, data: str, setting: Setting, pipe: Connection) -> None:
    """nn.EmbeddingBag with sparse gradients, torch.optim.Adagrad for tables and dense part."""
    found = columns(job, data)
    mode = "mean" if job.mean else "sum"
    tables = nn.ModuleDict(
        {table: nn.EmbeddingBag(rows, job.dim, mode=mode, sparse=True) for table, rows in found.tables.items()}
    )
    dense = DensePart(_width(job, found), job, setting.joint)
    if setting.compiled:
        dense.compile()
    optimizers = [torch.optim.Adagrad(tables.parameters(), lr=0.1), torch.optim.Adagrad(dense.parameters(), fused=True)]

    def parts() -> Iterator[tuple[list[Tensor], list[Tensor], Tensor, Tensor]]:
        for ids, lengths, numbers, labels in _read(found, job.batch):
            offsets = [np.cumsum(count, dtype=np.int64) - count for count in lengths]
            yield [torch.from_numpy(i) for i in ids], [torch.from_numpy(o) for o in offsets], numbers, labels

    batches = _ahead(parts())

    def step() -> None:
        ids, offsets, numbers, labels = next(batches)
        for optimizer in optimizers:
            optimizer.zero_grad()
        pooled = [tables[t](i, o) for t, i, o in zip(found.sparse.values(), ids, offsets, strict=True)]
        dense(torch.cat([*pooled, numbers], dim=1), labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    _take(step, pipe)


# ---- limit ----


def _limit(job: Job, data: str, setting: Setting, pipe: Connection) -> None:
    """Only what no training of this model can do without: its matrix products, and reading and writing its rows.

    Each product runs alone in its own shape into allocated memory. Rows lie in pages of 2 MiB where the system gives them.
    The lookup reads the row of every id, the update reads and writes every distinct one.
    """
    found = columns(job, data)
    work = _products(job, _width(job, found))
    run_pass = compiled_pass()
    tables = {name: torch.ones(rows, job.dim) for name, rows in found.tables.items()}
    for table in tables.values():
        use_huge_pages(table)
    ids, _, _, _ = next(_read(found, job.batch))
    owners = list(found.sparse.values())
    passes = [(tables[owner], values, 0) for owner, values in zip(owners, ids, strict=True)]
    for owner in tables:
        of_table = [values for name, values in zip(owners, ids, strict=True) if name == owner]
        passes.append((tables[owner], np.unique(np.concatenate(of_table)), 1))

    def step() -> None:
        for product in work:
            product()
        if run_pass is not None:
            for table, values, writes in passes:
                first, count, threads = values.ctypes.data, len(values), torch.get_num_threads()
                run_pass(table.data_ptr(), 4 * job.dim, first, count, 16, threads, writes, 0)

    _take(step, pipe)


def _products(job: Job, width: int) -> list[Callable[[], Any]]:
    """Matrix products of a step: of every layer forward, for its weights, and for its input."""
    shapes = [(1, width, job.rank or width)] * job.cross_layers
    shapes += [(1, job.rank, width)] * job.cross_layers if job.rank else []
    shapes += [(1, width, job.experts * job.layers[0]), (1, width, len(job.tasks) * job.experts)]
    shapes += [(job.experts, a, b) for a, b in pairwise(job.layers)]
    stack = (job.layers[-1], *job.tower, 1)
    shapes += [(len(job.tasks), a, b) for a, b in pairwise(stack)]
    work: list[Callable[[], Any]] = []
    for count, inner, outer in shapes:
        x, weight, y = torch.randn(job.batch, inner), torch.randn(outer, inner), torch.randn(job.batch, outer)
        results = torch.empty(job.batch, outer), torch.empty(outer, inner), torch.empty(job.batch, inner)
        pairs = ((x, weight.T), (y.T, x), (y, weight))
        for (a, b), out in zip(pairs, results, strict=True):
            work += [lambda a=a, b=b, out=out: torch.mm(a, b, out=out)] * count  # type: ignore[misc]
    return work


def flops(job: Job, width: int) -> int:
    """Floating-point operations of the matrix products of a step."""
    cross = job.cross_layers * (2 * width * job.rank if job.rank else width * width)
    experts = width * job.experts * job.layers[0] + width * len(job.tasks) * job.experts
    experts += job.experts * sum(a * b for a, b in pairwise(job.layers))
    stack = (job.layers[-1], *job.tower, 1)
    towers = len(job.tasks) * sum(a * b for a, b in pairwise(stack))
    return 6 * job.batch * (cross + experts + towers)
