"""The study of gradient balancing on Taobao's purchases, on generated files of the same layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from studies import taobao_balancing
from studies.taobao_balancing import purchases, ranking, runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users in four groups, each with items of its own: 6 purchases, one more for the test, and carts."""
    folder = tmp_path_factory.mktemp("ehcf")
    rng = np.random.default_rng(0)
    train, test, cart = [], [], []
    for user in range(80):
        taste = user % 4 * 10 + rng.permutation(10)
        train += [(user, item) for item in taste[:6]]
        test.append((user, taste[6]))
        cart += [(user, item) for item in taste[3:9]]
    for name, pairs, head, tail in (
        ("buy.train.txt", train, "uid\tsid", ""),
        ("buy.test.txt", test, "uid\tsid", ""),
        ("cart.csv", cart, "uid\tsid\t3", "\tcart"),
    ):
        lines = [head, *(f"{user}\t{item}{tail}" for user, item in pairs)]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs the study with the arguments given, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: taobao_balancing.main(list(map(str, arguments)))


def test_quick_study_and_going_on(
    command: Callable[..., None], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", files, "--quick", "--json", "out.json", "--plot", "out.svg")
    command(*arguments)
    first = capsys.readouterr()
    content = json.loads((tmp_path / "out.json").read_text())
    assert [run["method"] for run in content["runs"][:2]] == ["vanilla"] * 2
    assert len(content["runs"]) == 2 + 2 * 10
    assert content["data"]["users"] == 80
    assert "| MetaBalance + PCGrad |" in first.out
    assert (tmp_path / "out.svg").read_text().startswith("<svg")
    for run in content["runs"]:
        assert 1 <= run["best_epoch"] <= 2
        assert 0 <= run["test"]["ndcg@20"] <= 1
        # every user has one test purchase
        assert run["test"]["recall@10"] == pytest.approx(10 * run["test"]["precision@10"])

    # The last three runs are lost: the others are not repeated, and the tables come out the same.
    content["runs"] = content["runs"][:-3]
    (tmp_path / "out.json").write_text(json.dumps(content))
    command(*arguments)
    second = capsys.readouterr()
    assert "17 of 20 runs are finished already" in second.err
    assert second.out == first.out

    with pytest.raises(SystemExit) as exit:
        command(*arguments, "--epochs", 3)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("--json out.json: its runs have epochs 2 and not 3;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data nowhere: there is no such folder"),
        (["--data", "empty"], "empty: lacks the EHCF file buy.train.txt"),
        (["--data", "nowhere", "--seeds", "1"], "--seeds 1: an interval needs 2 seeds at least"),
        (["--data", "nowhere", "--batch", "6"], "--batch 6: is not a multiple of 4; give 8."),
        (["--data", "nowhere", "--epochs", "0"], "--epochs 0: give 1 or more."),
        (["--data", "nowhere", "--processes", "3"], "--processes 3: 4 lanes go on 1, 2 or 4 processes."),
    ],
)
def test_mistakes_end_in_a_sentence(
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as exit:
        command(*arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    prepared: Path = purchases.prepare_once(files, tmp_path, 5, 5, 0.15, 3)
    return prepared


def test_an_epochs_rows(folder: Path) -> None:
    data = purchases.Interactions(folder)
    epochs = [data.epoch(7, number, 4, carts=True) for number in (0, 1, 0)]
    known = {(user, item): (buy, cart) for user, item, buy, cart in data.train.tolist()}
    held = {tuple(pair) for pairs in data.held.values() for pair in pairs.tolist()}
    assert not held & known.keys()
    sampled = []
    for epoch in epochs:
        rows = list(zip(epoch.users.tolist(), epoch.items.tolist(), epoch.labels.tolist(), strict=True))
        assert len(rows) == 5 * len(known)
        observed = [row for row in rows if (row[0], row[1]) in known]
        assert len(observed) == len(known)
        assert all(known[user, item] == tuple(labels) for user, item, labels in observed)
        assert all(labels == [0, 0] for user, item, labels in rows if (user, item) not in known)
        sampled.append([row for row in rows if (row[0], row[1]) not in known])
    assert sampled[0] == sampled[2]
    assert sorted(sampled[0]) != sorted(sampled[1])
    bought = data.epoch(7, 0, 4, carts=False)
    assert len(bought.users) == 5 * sum(buy for buy, _ in known.values())


def test_scores_are_the_models(folder: Path) -> None:
    """The quick way of scoring gives what the model itself does in evaluation, also after training went on."""
    from dlrm_mtl.core.processes import process_group
    from dlrm_mtl.data.batch import Batch
    from dlrm_mtl.training.build import build_model

    data = purchases.Interactions(folder)
    scale = runs.Scale(batch=512, dim=8, deep=(8, 4), tower=(8, 4))
    config = runs.configuration(runs.Run("surgery", 1e-2, 1), scale, folder)
    with process_group() as process:
        model = build_model(config, data.spec, process)
        with torch.no_grad():
            for parameter in model.dense_parameters().values():
                parameter.add_(torch.randn_like(parameter))
        scorer = ranking.Scorer(model, data.users, data.items)
        items = torch.arange(data.items)
        expected = []
        model.module.eval()
        for user in range(data.users):
            features = ranking.ids(torch.full_like(items, user), items)
            none = torch.empty(data.items, 0)
            with torch.no_grad():
                expected.append(model.module(Batch(features, none, none, none))[:, 0])
        for parameter in model.dense_parameters().values():
            parameter.data.zero_()
    for user, scores in enumerate(expected):
        torch.testing.assert_close(scorer.scores(user), scores, rtol=1e-4, atol=1e-5)


def test_relax_0_is_vanilla(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = runs.Method("r = 0", {"name": "metabalance", "target": "buy", "relax": 0.0})
    monkeypatch.setitem(runs.METHODS, "zero", zero)
    scale = runs.Scale(batch=512, epochs=3, dim=8, deep=(8, 4), tower=(8,))
    vanilla, balanced = (runs.train(runs.Run(name, 1e-2, 1), scale, folder) for name in ("vanilla", "zero"))
    for one, other in zip(vanilla["curve"], balanced["curve"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
