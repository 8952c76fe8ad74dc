"""Logs of requests: what they hold, who may read them, and how large they become."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dlrm_mtl
from dlrm_mtl.serve.http.arrow_bodies import ARROW_TYPE
from dlrm_mtl.serve.http.request_log import RequestLog
from tests.serve.http.servers import ROW, running, stream, wait_until


def test_a_line_scores_as_it_says(
    shop: Path, tmp_path: Path, scorer: dlrm_mtl.Scorer, table: pa.Table, call: Callable[..., tuple[int, str]]
) -> None:
    log, slow = tmp_path / "requests.jsonl", tmp_path / "slow.jsonl"
    log.touch(0o644)
    options = ("--workers", 1, "--request-log", log, "--log-share", 1, "--slow-log", slow, "--slow-ms", 0)
    with running(tmp_path / "log", shop / "step_2", *options) as server, server.client() as client:
        client.post("/v1/score", json={"rows": [{**ROW, "other": "x"}, ROW]})
        client.post("/v1/score", content=stream(table), headers={"Content-Type": ARROW_TYPE})
        client.post("/v1/score", json={"rows": [{}]})
        videos = table.select(["item", "tags", "price"])
        context = {"user": 1, "history": [5], "age": 30.0, "other": 1}
        client.post("/v1/rank", json={"context": context, "candidates": videos.to_pylist(), "top": 3})
        wait_until(lambda: len(log.read_text().splitlines()) == 3, server.printed)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert slow.read_text() == log.read_text()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (log, slow)] == [0o600, 0o600]
    keys = ["time", "path", "version", "milliseconds", "waited_milliseconds"]
    ranks = ["context", "candidates", "top", "order", "score", "scores"]
    assert [list(line) for line in lines] == [[*keys, "rows", "scores"]] * 2 + [[*keys, *ranks]]
    assert lines[0]["rows"] == [ROW, ROW]
    assert len(lines[1]["rows"]) == table.num_rows
    for line, path in zip(lines, ["/v1/score", "/v1/score", "/v1/rank"], strict=True):
        assert (line["path"], line["version"]) == (path, scorer.version)
        assert line["milliseconds"] >= line["waited_milliseconds"] >= 0
    for line in lines[:2]:
        for task, scores in scorer.score(line["rows"]).items():
            np.testing.assert_array_equal(scores, np.array(line["scores"][task], np.float32))
    ranked = scorer.rank(lines[2]["context"], lines[2]["candidates"], lines[2]["top"])
    assert lines[2]["context"] == {"user": 1, "history": [5], "age": 30.0}
    assert (ranked.order.tolist(), ranked.score.tolist()) == (lines[2]["order"], lines[2]["score"])
    assert lines[2]["scores"] == {task: values.tolist() for task, values in ranked.tasks.items()}
    code, printed = call("skew", shop / "step_2", log)
    assert (code, printed.splitlines()[-1]) == (0, f"scores: equal in all {5 + table.num_rows} rows (within 1e-05)"), (
        printed
    )


def test_two_processes_share_a_bounded_log(tmp_path: Path) -> None:
    path, lost = tmp_path / "log", []
    logs = [RequestLog(path, 1000, lambda: lost.append(1)) for _ in range(2)]
    for number in range(100):
        logs[number % 2].write(lambda number=number: {"number": number, "text": "x" * 50})
    for log in logs:
        log.close()
    texts = [path.read_text(), path.with_name("log.1").read_text()]
    assert all(len(text) < 1000 + 2 * 100 for text in texts)
    numbers = [json.loads(line)["number"] for text in reversed(texts) for line in text.splitlines()]
    assert len(set(numbers)) == len(numbers) >= 14, "as many as the full file holds"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1"]
    assert lost == []


def test_a_full_disk_loses_lines_and_says_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    lost: list[int] = []
    log = RequestLog(tmp_path / "log", 1000, lambda: lost.append(1))
    full = Path("/dev/full").open("wb")  # noqa: SIM115
    os.dup2(full.fileno(), log._file)
    for _ in range(3):
        log.write(lambda: {"a": 1})
    log.close()
    assert len(lost) == 3
    assert caplog.text.count("a request could not be written (No space left on device)") == 1


def test_lines_that_come_too_fast_are_counted(tmp_path: Path) -> None:
    lost: list[int] = []
    log, go = RequestLog(tmp_path / "log", 10**6, lambda: lost.append(1)), threading.Event()
    for _ in range(1000):
        log.write(lambda: {"go": go.wait()})
    go.set()
    log.close()
    assert len((tmp_path / "log").read_text().splitlines()) + len(lost) == 1000
    assert len(lost) > 700
