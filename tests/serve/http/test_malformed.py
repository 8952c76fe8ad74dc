"""Requests of any form: each gets scores or one sentence with a status of 4xx, and the server goes on as before.

`make test` sends a few hundred, the slow test 10,000.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_mtl.serve.http.arrow_bodies import ARROW_TYPE
from tests.serve.http.servers import ROW, RunningServer, stream

NAMES = st.sampled_from([*ROW, "other", ""])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CHANGED_ROWS = st.dictionaries(NAMES, VALUES, max_size=3).map(lambda changes: {**ROW, **changes})
ROWS = st.lists(CHANGED_ROWS | VALUES, max_size=4)
REQUESTS = (
    st.fixed_dictionaries({"rows": ROWS})
    | st.fixed_dictionaries({"context": CHANGED_ROWS, "candidates": ROWS}, optional={"top": VALUES})
    | st.dictionaries(st.sampled_from(["rows", "context", "candidates", "top", "row"]), VALUES)
    | VALUES
)


@st.composite
def damaged(draw: Callable[[Any], Any], bodies: st.SearchStrategy[bytes]) -> bytes:
    """A body with a part of it replaced."""
    body = draw(bodies)
    start = draw(st.integers(0, len(body)))
    stop = draw(st.integers(start, min(start + 20, len(body))))
    return (
        body[:start]
        + draw(st.binary(max_size=10) | st.sampled_from([b"NaN", b"1e999", b'"', b"[" * 2000]))
        + body[stop:]
    )


@st.composite
def tables(draw: Callable[[Any], Any]) -> bytes:
    """Arrow streams with the columns of a row, some of them changed."""
    size = draw(st.integers(0, 3))
    columns = {name: pa.array([value] * size) for name, value in ROW.items()}
    arrays = st.sampled_from(
        [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.string(), pa.bool_(), pa.date32()]
    ).flatmap(
        lambda type_: st.lists(st.none(), min_size=size, max_size=size).map(lambda values: pa.array(values, type_))
    ) | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=size, max_size=size).map(
        lambda values: pa.array(values, pa.int64())
    )
    arrays |= st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=size, max_size=size).map(
        lambda values: pa.array(values, pa.list_(pa.int64()))
    )
    columns |= draw(st.dictionaries(NAMES, arrays, max_size=3))
    metadata = draw(st.dictionaries(st.sampled_from(["context", "top"]), REQUESTS.map(json.dumps), max_size=2))
    return stream(pa.table(columns).replace_schema_metadata(metadata))


JSON = REQUESTS.map(lambda content: json.dumps(content).encode())
BODIES = st.tuples(
    st.sampled_from(["/v1/score", "/v1/rank"]),
    st.just("application/json") | st.just("text/plain"),
    JSON | damaged(JSON) | st.binary(max_size=60) | st.text(max_size=30).map(str.encode),
) | st.tuples(
    st.sampled_from(["/v1/score", "/v1/rank"]),
    st.just(ARROW_TYPE),
    tables() | damaged(tables()) | st.binary(max_size=60),
)


def check_answer(answer: httpx.Response) -> None:
    """Scores that are finite numbers, or a sentence."""
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        content = json.loads(answer.content, parse_constant=fail)
        assert set(content) == {"error", "version"}
        assert "\n" not in content["error"].strip()
        assert "Traceback" not in content["error"]
        assert len(content["error"]) < 1000
    elif answer.headers["content-type"] == ARROW_TYPE:
        for column in pa.ipc.open_stream(answer.content).read_all().columns:
            assert all(map(math.isfinite, column.to_pylist()))
    else:
        content = json.loads(answer.content, parse_constant=fail)
        assert content["version"] == answer.headers["model-version"]


def fail(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is in the answer")


def send(server: RunningServer, count: int, derandomize: bool) -> None:
    """Send ``count`` requests, one after another, and check that the server is as it was."""
    workers, memory = server.workers(), []
    with server.client() as client:

        @settings(
            max_examples=count,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(BODIES)
        def each(request: tuple[str, str, bytes]) -> None:
            path, media_type, body = request
            check_answer(client.post(path, content=body, headers={"Content-Type": media_type}))
            memory.append(sum(map(resident, workers)) if len(memory) % 100 == 0 else 0)

        each()
        good = client.post("/v1/score", json={"rows": [ROW]})
    assert good.status_code == 200
    assert server.workers() == workers, server.printed()
    assert "Traceback" not in server.printed()
    warm = memory[len(memory) // 4 // 100 * 100]
    assert sum(map(resident, workers)) < warm + (64 << 20)


def resident(pid: int) -> int:
    """Memory of a process in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def test_hundreds_of_requests(server: RunningServer) -> None:
    send(server, 300, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_requests(server: RunningServer) -> None:
    send(server, 10_000, derandomize=False)
