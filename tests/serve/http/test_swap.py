"""Changes of the version under load: no request fails, and none is scored by two versions."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import dlrm_mtl
from tests import commands
from tests.damage import flip
from tests.serve.http.load import ROWS, Load
from tests.serve.http.servers import ROW, RunningServer, running, wait_until


def put(bundle: Path, place: Path, damaged: bool = False) -> None:
    """Copy a bundle to ``place``, complete at once."""
    incoming = shutil.copytree(bundle, place.with_name(f".{place.name}"))
    if damaged:
        flip(incoming / "dense.safetensors", 2000)
    incoming.rename(place)


def point(link: Path, target: Path) -> None:
    """Let a link point to ``target``, at once."""
    other = link.with_name("other")
    other.symlink_to(target)
    other.rename(link)


def metrics(server: RunningServer) -> str:
    with server.client() as client:
        return client.get("/metrics").text


def wait_for_workers(server: RunningServer, name: str, version: str, count: int) -> None:
    """Wait until ``count`` workers serve a version."""
    line = f'dlrm_mtl_workers{{name="{name}",version="{version}"}} {count:.1f}'
    wait_until(lambda: line in metrics(server), lambda: f"{server.printed()}{metrics(server)}")


def test_a_folder_of_bundles_under_load(shop: Path, tmp_path: Path, scorer: dlrm_mtl.Scorer) -> None:
    newer = dlrm_mtl.Scorer(shop / "step_10")
    wanted = {each.version: tuple(each.score(ROWS["rows"])["click"].tolist()) for each in (scorer, newer)}
    assert len(set(wanted.values())) == 2
    bundles = tmp_path / "bundles"
    put(shop / "step_2", bundles / "step_2")
    options = ("--watch", "--every", 0.1, "--workers", 2)
    with running(tmp_path / "log", bundles, *options) as server, Load(server) as load:
        put(shop / "step_10", bundles / "step_10")
        wait_for_workers(server, "step_10", newer.version, 2)
        load.wait_for_more(10)
        put(shop / "step_2", bundles / "step_11", damaged=True)
        server.wait_for(f"not served: {bundles}/step_11/dense.safetensors: does not have its checksum")
        refused = 'dlrm_mtl_refused_versions_total{name="step_11"} 2.0'
        wait_until(lambda: refused in metrics(server), server.printed)
        load.wait_for_more(10)
        put(shop / "step_2", bundles / "step_12")
        wait_for_workers(server, "step_12", scorer.version, 2)
        load.wait_for_more(10)
        shutil.rmtree(bundles / "step_12")  # the way back
        wait_for_workers(server, "step_10", newer.version, 2)
    assert load.errors == []
    assert {(status, wanted[version] == scores) for status, version, scores in load.answers} == {(200, True)}
    assert {version for _, version, _ in load.answers} == set(wanted)
    served = [line.rpartition(", from ")[2] for line in server.printed().splitlines() if ", from " in line]
    assert served == ["step_2", "step_10", "step_12", "step_10"]
    assert server.printed().count("step_11/dense.safetensors") == 1, "both workers refused it, and it is said once"


def test_a_link_to_a_bad_bundle(shop: Path, tmp_path: Path, scorer: dlrm_mtl.Scorer) -> None:
    put(shop / "step_10", tmp_path / "bad", damaged=True)
    link = tmp_path / "current"
    link.symlink_to(shop / "step_2")
    with running(tmp_path / "log", link, "--watch", "--every", 0.1, "--workers", 1) as server:
        point(link, tmp_path / "bad")
        server.wait_for("not served: ")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)  # the next one has never seen the link's first target
        with server.client() as client:
            assert client.post("/v1/score", json={"rows": [ROW]}).json()["version"] == scorer.version
        point(link, shop / "step_10")
        wait_for_workers(server, "step_10", dlrm_mtl.Scorer(shop / "step_10").version, 1)


def test_a_bad_bundle_at_the_start(shop: Path, tmp_path: Path, scorer: dlrm_mtl.Scorer) -> None:
    put(shop / "step_2", tmp_path / "bundles" / "a")
    put(shop / "step_10", tmp_path / "bundles" / "b", damaged=True)
    with running(tmp_path / "log", tmp_path / "bundles", "--workers", 1) as server, server.client() as client:
        assert client.get("/v1/model").json()["version"] == scorer.version
        assert f"not served: {tmp_path}/bundles/b/dense.safetensors" in server.printed()


def test_no_bundle_yet(shop: Path, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    with (
        running(tmp_path / "log", bundles, "--watch", "--every", 0.1, "--workers", 1) as server,
        server.client() as client,
    ):
        assert f"{bundles}: no bundle is there yet; requests get 503 until one is." in server.printed()
        assert client.get("/healthz").status_code == 200
        for answer in (client.get("/readyz"), client.get("/v1/model"), client.post("/v1/score", json=ROWS)):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"error": "not ready: there is no model yet; try again in a second."}
        put(shop / "step_2", bundles / "first")
        wait_until(lambda: client.get("/readyz").status_code == 200, server.printed)
        assert client.post("/v1/score", json=ROWS).status_code == 200
        shutil.rmtree(bundles)  # of no consequence but for what is said
        server.wait_for(f"not served: {bundles}: there is no bundle here")
        assert client.post("/v1/score", json=ROWS).status_code == 200


@pytest.mark.parametrize("watch", [[], ["--watch"]])
def test_a_bad_bundle_alone(shop: Path, tmp_path: Path, watch: list[str]) -> None:
    put(shop / "step_2", tmp_path / "bad", damaged=True)
    done = commands.run("serve", tmp_path / "bad", "--port", 0, "--workers", 2, *watch)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/bad/dense.safetensors: does not have its checksum")
    assert len(done.stderr.splitlines()) == 1
