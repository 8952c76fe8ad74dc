"""Answers of a real server to a real client: scores, versions, and clear errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

import dlrm_mtl
from dlrm_mtl.serve.http.arrow_bodies import ARROW_TYPE
from tests.serve.http.servers import ROW, RunningServer, stream

JSON = {"Content-Type": "application/json"}
ARROW = {"Content-Type": ARROW_TYPE}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_scores_are_those_of_the_scorer(client: httpx.Client, scorer: dlrm_mtl.Scorer, table: pa.Table) -> None:
    wanted = scorer.score(table)
    answer = client.post("/v1/score", json={"rows": table.to_pylist()})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["model-version"] == scorer.version
    content = answer.json()
    assert (content["version"], list(content["scores"])) == (scorer.version, scorer.tasks)
    for task in scorer.tasks:
        np.testing.assert_array_equal(np.array(content["scores"][task], np.float32), wanted[task])


def test_arrow_in_and_out(client: httpx.Client, scorer: dlrm_mtl.Scorer, table: pa.Table) -> None:
    wanted = scorer.score(table)
    bodies = {ARROW_TYPE: stream(table), "application/json": json.dumps({"rows": table.to_pylist()}).encode()}
    for sent, body in bodies.items():
        answer = client.post("/v1/score", content=body, headers={"Content-Type": sent, "Accept": ARROW_TYPE})
        assert answer.headers["content-type"] == ARROW_TYPE, answer.text
        scores = pa.ipc.open_stream(answer.content).read_all()
        assert scores.schema.metadata == {b"version": scorer.version.encode()}
        assert scores.schema.types == [pa.float32()] * 2
        for task in scorer.tasks:
            np.testing.assert_array_equal(scores[task].to_numpy(), wanted[task])
    plain = client.post("/v1/score", content=bodies[ARROW_TYPE], headers={**ARROW, "Accept": "application/json"})
    assert plain.json()["scores"]["click"] == wanted["click"].tolist()


CONTEXT = {"user": 1, "history": [5, 6, 7], "age": 30.0}


def test_ranks_are_those_of_the_scorer(client: httpx.Client, scorer: dlrm_mtl.Scorer, table: pa.Table) -> None:
    candidates = table.select(["item", "tags", "price"])
    ranked = scorer.rank(CONTEXT, candidates, 5)
    content = client.post("/v1/rank", json={"context": CONTEXT, "candidates": candidates.to_pylist(), "top": 5}).json()
    assert content == {
        "version": scorer.version,
        "order": ranked.order.tolist(),
        "score": ranked.score.tolist(),
        "tasks": {task: values.tolist() for task, values in ranked.tasks.items()},
    }
    every = client.post("/v1/rank", json={"context": CONTEXT, "candidates": candidates.to_pylist()}).json()
    assert every["order"][:5] == content["order"]
    assert len(every["order"]) == table.num_rows
    nothing = client.post("/v1/rank", json={"context": CONTEXT, "candidates": []}).json()
    assert nothing == {"version": scorer.version, "order": [], "score": [], "tasks": {"click": [], "buy": []}}


def test_ranks_in_arrow(client: httpx.Client, scorer: dlrm_mtl.Scorer, table: pa.Table) -> None:
    candidates = table.select(["item", "tags", "price"])
    ranked = scorer.rank(CONTEXT, candidates, 5)
    metadata = {"context": json.dumps(CONTEXT), "top": "5"}
    answer = client.post("/v1/rank", content=stream(candidates.replace_schema_metadata(metadata)), headers=ARROW)
    found = pa.ipc.open_stream(answer.content).read_all()
    assert found.column_names == ["order", "score", "tasks.click", "tasks.buy"]
    assert found["order"].to_pylist() == ranked.order.tolist()
    np.testing.assert_array_equal(found["score"].to_numpy(), ranked.score)
    np.testing.assert_array_equal(found["tasks.buy"].to_numpy(), ranked.tasks["buy"])


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        ({"context": CONTEXT}, 400, "body: the key 'candidates' is required; add it."),
        ({"context": [], "candidates": []}, 400, "body: 'context' is a list where an object is expected."),
        ({"context": CONTEXT, "candidates": [], "top": 0}, 422, "top: 0 is no number of candidates"),
        ({"context": CONTEXT, "candidates": [], "top": 1.5}, 400, "body: 'top' is a number where a whole number"),
        ({"context": CONTEXT, "candidates": [5]}, 422, "candidates, row 0: is 5 where a mapping"),
        (
            {"context": CONTEXT, "candidates": [{"item": 2, "tags": []}]},
            422,
            "row 0: there is no field 'price', which",
        ),
        ({"context": CONTEXT, "candidates": [{}] * 1001}, 413, "body: 1,001 candidates are more than 1,000"),
        (
            {"context": {"history": [1] * 3000}, "candidates": [{}] * 1000},
            413,
            "body: 3,000 values of the context for each of 1,000 candidates are more than 2,000,000 together",
        ),
    ],
)
def test_bad_requests_for_ranks(client: httpx.Client, content: dict[str, Any], status: int, sentence: str) -> None:
    refused(client.post("/v1/rank", json=content), status, sentence)


@pytest.mark.parametrize(
    ("metadata", "status", "sentence"),
    [
        ({}, 400, "body: is not JSON in UTF-8"),
        ({"context": "[]"}, 400, "body: is no JSON object"),
        ({"context": "{}", "top": '"x"'}, 400, "body: 'top' is a text where a whole number is expected."),
        ({"context": '{"user": [1, "x"]}'}, 422, "context, row 0: 'user' holds [1, 'x'] where an id"),
        ({"context": '{"user": {"a": 1}}'}, 422, "context, row 0: 'user' holds {'a': 1} where an id"),
    ],
)
def test_bad_metadata_of_a_stream(
    client: httpx.Client, table: pa.Table, metadata: dict[str, str], status: int, sentence: str
) -> None:
    body = stream(table.select(["item", "tags", "price"]).replace_schema_metadata(metadata))
    refused(client.post("/v1/rank", content=body, headers=ARROW), status, sentence)


def test_batches_dictionaries_and_floats_in_arrow(
    client: httpx.Client, scorer: dlrm_mtl.Scorer, table: pa.Table
) -> None:
    wanted = scorer.score(table)
    changed = table.set_column(0, "user", table["user"].cast(pa.float64()))
    changed = changed.set_column(1, "item", table["item"].dictionary_encode())
    body = stream(pa.Table.from_batches(changed.to_batches(max_chunksize=7)))
    answer = client.post("/v1/score", content=body, headers={**ARROW, "Accept": "application/json"})
    assert answer.json()["scores"]["click"] == wanted["click"].tolist()


def test_no_rows(client: httpx.Client, table: pa.Table) -> None:
    assert client.post("/v1/score", json={"rows": []}).json()["scores"] == {"click": [], "buy": []}
    answer = client.post("/v1/score", content=stream(table.slice(0, 0)), headers=ARROW)
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 0


def test_the_model_and_the_probes(client: httpx.Client, scorer: dlrm_mtl.Scorer) -> None:
    model = client.get("/v1/model").json()
    features = {feature.pop("name"): feature for feature in model.pop("features")}
    assert model == {
        "served_from": "step_2",
        "name": "synthetic",
        "step": 2,
        "tasks": ["click", "buy"],
        "score": {"sum": {"click": 1.0}},
        "version": scorer.version,
    }
    assert features["user"] == {"field": "user", "kind": "sparse", "missing": "refuse", "unknown": "refuse"}
    assert features["age"] == {"field": "age", "kind": "dense", "missing": "refuse"}
    assert set(features) == set(ROW)
    for path, status in {"/healthz": "alive", "/readyz": "ready"}.items():
        answer = client.get(path)
        assert answer.json() == {"status": status, "version": scorer.version}
        assert answer.headers["model-version"] == scorer.version


def nested(depth: int) -> bytes:
    return b'{"rows": ' + b"[" * depth + b"]" * depth + b"}"


BAD_JSON: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "body: is not JSON in UTF-8 (Expecting value"),
    "half": (b'{"rows": [', 400, "body: is not JSON in UTF-8"),
    "latin": ('{"rows": [{"ä": 1}]}'.encode("latin-1"), 400, "body: is not JSON in UTF-8 ('utf-8' codec can't decode"),
    "utf16": ('{"rows": []}'.encode("utf-16"), 400, "body: is not JSON in UTF-8"),
    "a list": (b"[]", 400, 'body: is no JSON object; send one, such as {"rows": [{...}, ...]}.'),
    "nan": (b'{"rows": [{"age": NaN}]}', 400, "NaN is no JSON number"),
    "infinity": (b'{"rows": [{"age": -Infinity}]}', 400, "-Infinity is no JSON number"),
    "twice": (b'{"rows": [{"user": 1, "user": 2}]}', 400, "the key 'user' stands twice in an object"),
    "deep": (nested(100_000), 400, "body: the JSON is nested too deeply"),
    "deep value": (
        b'{"rows": [{"user": ' + nested(900)[9:-1] + b"}]}",
        422,
        "where an id or a list of ids is expected",
    ),
    "many digits": (b'{"rows": [{"user": ' + b"9" * 10_000 + b"}]}", 400, "body: is not JSON in UTF-8 (Exceeds"),
    "digits": (b'{"rows": [{"user": ' + b"9" * 100 + b"}]}", 422, "body, row 0: 'user' holds 9999"),
    "no rows": (b"{}", 400, "body: the key 'rows' is required; add it."),
    "another key": (b'{"row": []}', 400, "body: there is no key 'row' here; did you mean 'rows'? allowed: rows."),
    "a surrogate": (b'{"\\ud800": []}', 400, "there is no key '\\ud800' here"),
    "rows of another type": (b'{"rows": {"user": [1]}}', 400, "body: 'rows' is an object where a list is expected."),
    "null rows": (b'{"rows": null}', 400, "body: 'rows' is null where a list is expected."),
    "a row that is none": (b'{"rows": [5]}', 422, "body, row 0: is 5 where a mapping from columns to values"),
    "a missing field": (b'{"rows": [{}]}', 422, "body, row 0: there is no field 'user', which feature 'user' reads"),
    "too many rows": (b'{"rows": [' + b"1," * 1000 + b"1]}", 413, "body: 1,001 rows are more than 1,000; send fewer"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(client: httpx.Client, name: str) -> None:
    body, status, sentence = BAD_JSON[name]
    refused(client.post("/v1/score", content=body, headers=JSON), status, sentence)


def refused(answer: httpx.Response, status: int, sentence: str) -> None:
    """Check an answer to a bad request: its status, and one sentence."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert set(content) == {"error", "version"}
    assert content["version"] == answer.headers["model-version"]
    assert sentence in content["error"]
    assert "\n" not in content["error"]
    assert "Traceback" not in content["error"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": 60}, "body, row 1: 'user' holds the id 60, which feature 'user' does not know"),
        ({"user": -1}, "body, row 1: 'user' holds the id -1"),
        ({"user": "x" * 1000}, "where an id or a list of ids is expected"),
        ({"price": 1e39}, "body, row 1: column 'price' holds 1e+39, which is no finite number"),
        ({"age": 1e39}, "body, row 1: task 'click' has no finite score; one of its numbers is too large"),
        ({"history": {"a": 1}}, "where a list of ids is expected"),
    ],
)
def test_values_that_the_model_refuses(client: httpx.Client, changes: dict[str, Any], sentence: str) -> None:
    refused(client.post("/v1/score", json={"rows": [ROW, {**ROW, **changes}]}), 422, sentence)


def test_large_bodies(client: httpx.Client) -> None:
    body = b'{"rows": []' + b" " * 1_000_000 + b"}"
    refused(client.post("/v1/score", content=body, headers=JSON), 413, "body: is larger than 976.6 KiB")
    chunked = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    refused(client.post("/v1/score", content=chunked, headers=JSON), 413, "body: is larger than 976.6 KiB")
    assert client.post("/v1/score", content=b'{"rows": []' + b" " * 900_000 + b"}", headers=JSON).status_code == 200


def test_what_is_not_understood(client: httpx.Client) -> None:
    refused(client.post("/v1/score", content=b"{}"), 415, "Content-Type: '' is not understood; send application/json")
    refused(client.post("/v1/score", data={"rows": "1"}), 415, "Content-Type: 'application/x-www-form-urlencoded' is")
    packed = {**JSON, "Content-Encoding": "gzip"}
    refused(client.post("/v1/score", content=b"x", headers=packed), 415, "Content-Encoding: 'gzip' is not understood")
    refused(client.get("/v1/scores"), 404, "there is no path '/v1/scores' here; did you mean '/v1/score'?")
    refused(client.get("/v1/score"), 405, "/v1/score does not take GET; use POST.")
    refused(client.post("/healthz"), 405, "/healthz does not take POST; use GET or HEAD.")


def test_metrics_are_those_of_all_workers(server: RunningServer, scorer: dlrm_mtl.Scorer) -> None:
    before = samples(server)
    for _ in range(20):
        with server.client() as client:  # connections of their own, to any of the workers
            client.post("/v1/score", json={"rows": [ROW] * 3})
    with server.client() as client:
        client.post("/v1/score", json={"rows": [{**ROW, "user": 60}]})
    after = samples(server)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert more('dlrm_mtl_requests_total{path="/v1/score",status="200"}') == 20
    assert more('dlrm_mtl_requests_total{path="/v1/score",status="422"}') == 1
    assert more('dlrm_mtl_rows_total{path="/v1/score"}') == 60
    assert more('dlrm_mtl_request_seconds_count{path="/v1/score"}') == 21
    assert after["dlrm_mtl_waiting"] == 0
    assert after[f'dlrm_mtl_workers{{name="step_2",version="{scorer.version}"}}'] == 2


def samples(server: RunningServer) -> dict[str, float]:
    """Values of the metrics by name and labels."""
    with server.client() as client:
        text = client.get("/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
