"""A request of one user and 500 candidates for the KuaiRand job, in process and over HTTP, on one core.

Beside it: the dense layers of the same rows alone, TorchRec's quantised CPU model and ONNX Runtime with the same weights. All
have one thread and one core, and take turns. TorchRec and ONNX Runtime are measured twice: from columns of numbers, the
quickest form of a request in Python, and on tensors that are ready, without any work on the request.

The targets: whole requests in process take at most 1.5 times the dense layers, p99 over HTTP is at most 15 ms, TorchRec takes
at least 3 times and ONNX Runtime at least 2 times as long.

    python -m benchmarks serving
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.inference.modules import quantize_embeddings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import dlrm_mtl
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.graphs.export import export_graph
from dlrm_mtl.serve.rows import Where

ROOT = Path(__file__).parents[1]
CANDIDATES, TOP = 500, 50
CANDIDATE = re.compile(r"video_.*|author|music.*|tag|duration_.*|upload_type|user_tag_.*")
"""Columns of a candidate; the others are the user's."""
DENSE = "dense layers of the same rows"
STREAM = "application/vnd.apache.arrow.stream"
"""Media type of Arrow bodies."""


def run(quick: bool) -> dict[str, Any]:
    """Train a few steps, export, and measure all forms of a request."""
    cores = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(Path(folder))
        scorer = dlrm_mtl.Scorer(bundle)
        context, candidates = _request()
        with _server(bundle, cores[-1]) as post:
            if len(cores) > 1:
                os.sched_setaffinity(0, {cores[0]})
            try:
                times = _measure(_variants(scorer, context, candidates, post), 40 if quick else 1000)
            finally:
                os.sched_setaffinity(0, set(cores))
    return _show(times)


def _bundle(folder: Path) -> Path:
    config = dlrm_mtl.load_config(
        ROOT / "configs/kuairand_mmoe.yaml",
        [f"data.path={ROOT / 'datasets/kuairand_pure'}", "training.max_steps=20"],
    )
    dlrm_mtl.train(config, folder / "run", progress=False)
    export_run(folder / "run", folder / "bundle", checkpoint="latest")
    return folder / "bundle"


def _request() -> tuple[dict[str, Any], pa.Table]:
    """A user's fields, and a table of candidates."""
    table = pq.read_table(ROOT / "datasets/kuairand_pure/test").slice(0, CANDIDATES).combine_chunks()
    names = [name for name in table.column_names if CANDIDATE.fullmatch(name)]
    context = table.slice(0, 1).to_pylist()[0]
    return {name: value for name, value in context.items() if name not in names}, table.select(names)


@contextmanager
def _server(bundle: Path, core: int) -> Iterator[Callable[[bytes, str], bytes]]:
    """A server with one worker on one core; gives a function that posts a body to /v1/rank on an open connection."""
    command = [sys.executable, "-m", "dlrm_mtl", "serve", str(bundle), "--port", "0", "--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    try:
        assert process.stdout is not None
        port = next(match.group(1) for line in process.stdout if (match := re.search(r":(\d+): answers", line)))
        connection = _Connection("127.0.0.1", int(port))

        def post(body: bytes, media_type: str) -> bytes:
            connection.request("POST", "/v1/rank", body, {"Content-Type": media_type})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return content

        yield post
        connection.close()
    finally:
        process.terminate()
        process.wait(30)


class _Connection(http.client.HTTPConnection):
    """A connection with segments as on Ethernet.

    Those of loopback have 64 KiB: Linux then delays an acknowledgement within a larger body by 40 ms, as no network does.
    """

    def connect(self) -> None:
        """Connect with Ethernet's segment size."""
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect((self.host, self.port))


def _variants(
    scorer: dlrm_mtl.Scorer, context: dict[str, Any], candidates: pa.Table, post: Callable[[bytes, str], bytes]
) -> dict[str, Callable[[], object]]:
    rows = candidates.to_pylist()
    columns = _Columns(scorer, context, candidates)
    features, dense = scorer._features(columns.joined), columns.joined.dense
    stock, onnx = _Stock(scorer._model), _Onnx(scorer, columns.padded())
    columns.check(scorer, stock, onnx)
    body = json.dumps({"context": context, "candidates": rows, "top": TOP}).encode()
    sink = pa.BufferOutputStream()
    metadata = {"context": json.dumps(context), "top": str(TOP)}
    with pa.ipc.new_stream(sink, candidates.schema.with_metadata(metadata)) as writer:
        writer.write_table(candidates)
    stream = sink.getvalue().to_pybytes()
    kjt, inputs = columns.kjt(), columns.padded()

    def layers() -> Tensor:
        with torch.inference_mode():
            return scorer._model.logits_of(features, dense)

    return {
        DENSE: layers,
        "rank, Arrow candidates": lambda: scorer.rank(context, candidates, TOP),
        "rank, dicts": lambda: scorer.rank(context, rows, TOP),
        "HTTP, Arrow": lambda: post(stream, STREAM),
        "HTTP, JSON": lambda: post(body, "application/json"),
        "TorchRec int8": lambda: _best(torch.sigmoid(stock(columns.kjt(), dense))),
        "TorchRec int8, tensors ready": lambda: _best(torch.sigmoid(stock(kjt, dense))),
        "ONNX Runtime": lambda: _best(onnx(columns.padded())),
        "ONNX Runtime, tensors ready": lambda: _best(onnx(inputs)),
    }


def _best(predictions: Tensor) -> Tensor:
    return torch.topk(predictions[:, 0], TOP).indices


class _Columns:
    """A request as arrays of ids and lengths, from which a server without our encoder would make its input."""

    def __init__(self, scorer: dlrm_mtl.Scorer, context: dict[str, Any], candidates: pa.Table) -> None:
        table = candidates
        for name, value in context.items():
            table = table.append_column(name, pa.array([value] * CANDIDATES))
        (self.joined,) = scorer._encoder.encode(table, Where()).parts(CANDIDATES)
        self._table = table
        self.keys = list(scorer._keys)
        lengths = self.joined.lengths.view(len(self.keys), -1)
        ends = lengths.sum(1).cumsum(0).tolist()
        values = [
            self.joined.values[end - count : end].numpy()
            for end, count in zip(ends, lengths.sum(1).tolist(), strict=True)
        ]
        self._users = {}
        self._items: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for number, key in enumerate(self.keys):
            if key in context:  # one user's ids and their number
                count = int(lengths[number, 0])
                self._users[number] = (values[number][:count], count)
            self._items.append((values[number], lengths[number].numpy()))

    def kjt(self) -> KeyedJaggedTensor:
        """TorchRec's input: the user's ids are repeated for every candidate."""
        values, lengths = [], []
        for number, (ids, counts) in enumerate(self._items):
            if number in self._users:
                own, count = self._users[number]
                ids, counts = np.tile(own, CANDIDATES), np.full(CANDIDATES, count, counts.dtype)
            values.append(ids)
            lengths.append(counts)
        lengths = torch.from_numpy(np.concatenate(lengths))
        return KeyedJaggedTensor(self.keys, torch.from_numpy(np.concatenate(values)), lengths=lengths)

    def padded(self) -> dict[str, NDArray[Any]]:
        """ONNX Runtime's input."""
        found: dict[str, NDArray[Any]] = {"dense": self.joined.dense.numpy()}
        for number, (key, (ids, counts)) in enumerate(zip(self.keys, self._items, strict=True)):
            if number in self._users:
                own, count = self._users[number]
                width = max(count, 1)
                filled = np.zeros((CANDIDATES, width), np.int64)
                filled[:, :count] = own
                found[f"{key}.ids"], found[f"{key}.lengths"] = filled, np.full(CANDIDATES, count, np.int64)
                continue
            filled = np.zeros((CANDIDATES, max(int(counts.max()), 1)), np.int64)
            filled[np.arange(filled.shape[1]) < counts[:, None]] = ids
            found[f"{key}.ids"], found[f"{key}.lengths"] = filled, counts.astype(np.int64)
        return found

    def check(self, scorer: dlrm_mtl.Scorer, stock: _Stock, onnx: _Onnx) -> None:
        """Raise AssertionError unless all models score the rows alike, TorchRec up to its 8 bits."""
        wanted = scorer.score(self._table)[scorer.tasks[0]]
        exact, coarse = onnx(self.padded()), torch.sigmoid(stock(self.kjt(), self.joined.dense))
        for found, tolerance in ((exact, 1e-5), (coarse, 0.02)):
            difference = np.abs(found[:, 0].numpy() - wanted).max()
            assert difference < tolerance, difference


class _Onnx:
    """The model that `export-graph` writes, in a session with one thread."""

    def __init__(self, scorer: dlrm_mtl.Scorer, example: dict[str, NDArray[Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_graph(scorer.folder, path, "onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert {each.name for each in self._session.get_inputs()} == set(example)

    def __call__(self, inputs: dict[str, NDArray[Any]]) -> Tensor:
        """Predictions [N, T]."""
        return torch.stack([torch.from_numpy(task).view(-1) for task in self._session.run(None, inputs)], 1)


class _Stock:
    """The model with TorchRec's quantised tables, and the same dense layers."""

    def __init__(self, model: RankingModel) -> None:
        tables = model.lookup.table_set
        means = tables.means
        collection = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table.name if len(kinds) == 1 else f"{table.name}_{kind.name}",
                    num_embeddings=table.num_embeddings,
                    embedding_dim=table.embedding_dim,
                    feature_names=[
                        name for name in table.feature_names if (name in means) == (kind == PoolingType.MEAN)
                    ],
                    pooling=kind,
                )
                for table in tables.configs
                for kinds in [{PoolingType.MEAN if name in means else PoolingType.SUM for name in table.feature_names}]
                for kind in sorted(kinds, key=lambda kind: kind.name)
            ]
        )
        rows = model.lookup.tables._rows
        for config in collection.embedding_bag_configs():
            name = config.name.removesuffix("_MEAN").removesuffix("_SUM")
            with torch.no_grad():
                collection.embedding_bags[config.name].weight.copy_(
                    rows[name].vectors(torch.arange(config.num_embeddings))
                )
        holder = nn.Module()
        holder.tables = collection
        self._tables = quantize_embeddings(holder, dtype=torch.qint8, inplace=True).tables
        self._model, self._names = model, model.lookup.names

    @torch.inference_mode()
    def __call__(self, kjt: KeyedJaggedTensor, dense: Tensor) -> Tensor:
        """Logits [N, T]."""
        sums = self._tables(kjt).to_dict()
        return self._model.logits_of(torch.cat([sums[name] for name in self._names], 1), dense)


def _measure(variants: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Times in milliseconds of every variant, in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(turns + 10):
        shift = turn % len(names)  # no variant always follows the same one
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            variants[name]()
            if turn >= 10:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _show(times: dict[str, list[float]]) -> dict[str, Any]:
    print(f"1 user x {CANDIDATES} candidates, top {TOP}, {len(times[DENSE])} turns, one thread and one core")
    print(f"  {'':32}{'p50 ms':>9}{'p99 ms':>9}{'x dense':>9}  middle half")
    figures = {}
    for name, values in times.items():
        ratios = sorted(own / base for own, base in zip(values, times[DENSE], strict=True))
        quarter = len(ratios) // 4
        figures[name] = {
            "p50_ms": statistics.median(values),
            "p99_ms": float(np.percentile(values, 99)),
            "to_dense": statistics.median(ratios),
            "to_dense_low": ratios[quarter],
            "to_dense_high": ratios[-1 - quarter],
        }
        row = figures[name]
        print(
            f"  {name:32}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['to_dense']:9.2f}  {row['to_dense_low']:.2f} to "
            f"{row['to_dense_high']:.2f}"
        )
    own = times["rank, Arrow candidates"]
    for name, target in (("TorchRec int8", 3), ("ONNX Runtime", 2)):
        ratio = statistics.median(other / mine for other, mine in zip(times[name], own, strict=True))
        figures[name]["to_rank"] = ratio
        print(f"{name} / rank with Arrow candidates: {ratio:.2f} (target: at least {target})")
    print(
        f"rank with Arrow candidates / dense layers: {figures['rank, Arrow candidates']['to_dense']:.2f} (target: at most 1.5)"
    )
    return {"candidates": CANDIDATES, "top": TOP, "variants": figures}
