"""Requests: one user and many candidates give the predictions of the merged rows, the best score first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlrm_mtl
from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.formula import combined
from dlrm_mtl.serve.scorer import BLOCK, LARGE_BLOCKS, block_sizes
from tests import commands, synthetic

USER = {"user": 7, "history": [5, 6, 7], "age": 30.0}
ITEMS = [{"item": item, "tags": [item % 30, 3], "price": item / 100} for item in range(150)]
WHOLE = {"user": 7, "item": 3, "tags": [1, 2], "history": [5, 6, 7], "age": 30.0, "price": 0.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Large blocks are used in one thread only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    data = synthetic.write_dataset(folder / "data", rows=300)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 3, "log_every": 2})
    content["serving"] = {"score": {"product": {"click": 1, "buy": 0.5}}}
    content["data"] |= {"max_sequence_length": 4}  # type: ignore[operator]
    config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
    dlrm_mtl.train(config, folder / "run", progress=False)
    export_run(folder / "run", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> dlrm_mtl.Scorer:
    return dlrm_mtl.Scorer(bundle)


def same_as_rows(scorer: dlrm_mtl.Scorer, context: dict[str, Any], candidates: Any, rows: list[dict[str, Any]]) -> None:
    """Check that a request gets the predictions of whole rows, bit for bit, and counts policies as they do."""
    before = scorer.counts
    scores = scorer.score(rows)
    between = scorer.counts
    ranked = scorer.rank(context, candidates)
    for task, values in scores.items():
        assert np.array_equal(ranked.tasks[task], values[ranked.order])
    assert sorted(ranked.order.tolist()) == list(range(len(rows)))
    for what, counts in between.items():
        for name, count in counts.items():
            assert scorer.counts[what][name] - count == count - before[what].get(name, 0)


def test_the_best_first(scorer: dlrm_mtl.Scorer) -> None:
    ranked = scorer.rank(USER, ITEMS, 10)
    scores = scorer.score([{**USER, **item} for item in ITEMS])
    expected = scores["click"].astype(np.float64) * np.sqrt(scores["buy"].astype(np.float64))
    assert ranked.order.tolist() == np.argsort(-expected.astype(np.float32), kind="stable")[:10].tolist()
    np.testing.assert_allclose(ranked.score, expected[ranked.order], rtol=1e-6)
    for task, values in scores.items():
        assert np.array_equal(ranked.tasks[task], values[ranked.order])


@pytest.mark.parametrize("fields", [["item"], ["item", "tags", "price"], ["user", "age"], [], list(WHOLE)])
@pytest.mark.parametrize("count", [1, 5, 300])
def test_every_division_of_the_fields(scorer: dlrm_mtl.Scorer, fields: list[str], count: int) -> None:
    rng = np.random.default_rng(count)
    values = {
        "user": lambda: int(rng.integers(60)),
        "item": lambda: int(rng.integers(200)) if rng.random() < 0.9 else None,
        "tags": lambda: [int(tag) for tag in rng.integers(0, 30, rng.integers(0, 4))] if rng.random() < 0.9 else None,
        "history": lambda: [int(item) for item in rng.integers(0, 200, rng.integers(0, 8))],
        "age": lambda: float(rng.normal(40, 10)) if rng.random() < 0.9 else None,
        "price": lambda: float(rng.normal()),
    }
    candidates: list[dict[str, Any]] = [{name: values[name]() for name in fields} for _ in range(count)]
    context = {name: value for name, value in WHOLE.items() if name not in fields}
    rows = [{**context, **candidate} for candidate in candidates]
    same_as_rows(scorer, context, candidates, rows)
    same_as_rows(scorer, {**WHOLE, "unread": "text"}, candidates, rows)  # the candidate's field counts
    if fields:
        same_as_rows(scorer, context, pa.Table.from_pylist(candidates), rows)


def test_a_field_that_only_some_candidates_have(scorer: dlrm_mtl.Scorer) -> None:
    candidates = [{"item": 4}, {"item": 5, "price": 2.0}, {"price": None}]
    same_as_rows(scorer, WHOLE, candidates, [{**WHOLE, **candidate} for candidate in candidates])


def test_policies_count_a_context_for_every_candidate(bundle: Path) -> None:
    lenient = dlrm_mtl.Scorer(bundle, missing="default", unknown="unknown")
    context = {"user": 1000, "history": [5, 999, 7]}
    candidates = [{"item": 3, "tags": [1, 77]}, {"item": 500, "price": 1.0}]
    same_as_rows(lenient, context, candidates, [{**context, **candidate} for candidate in candidates])
    assert lenient.rank(context, []).order.shape == (0,)


def test_a_table_with_replaced_rows(bundle: Path, scorer: dlrm_mtl.Scorer) -> None:
    """Such a table is looked up by itself, and the others in one call."""
    changed = dlrm_mtl.Scorer(bundle)
    table = changed.tables["item"]
    changed.tables["item"] = table.with_rows(torch.arange(100), torch.full((100, table.dim), 0.3))
    same_as_rows(changed, USER, ITEMS, [{**USER, **item} for item in ITEMS])
    assert not np.array_equal(changed.rank(USER, ITEMS).score, scorer.rank(USER, ITEMS).score)


def test_the_other_candidates_do_not_matter(scorer: dlrm_mtl.Scorer) -> None:
    items = [ITEMS[number % 150] for number in range(900)]
    whole = scorer.rank(USER, items)
    by_candidate = dict(zip(whole.order.tolist(), whole.tasks["buy"].tolist(), strict=True))
    for count in (1, BLOCK, BLOCK + 1, *(size + more for size in LARGE_BLOCKS for more in (-1, 0, 1)), 897):
        some = scorer.rank(USER, items[:count])
        for place, number in enumerate(some.order.tolist()):
            assert some.tasks["buy"][place] == by_candidate[number]


@given(rows=st.integers(0, 3000), large=st.booleans())
def test_blocks_hold_all_rows(rows: int, large: bool) -> None:
    allowed = [*LARGE_BLOCKS, BLOCK] if large else [BLOCK]
    sizes = block_sizes(rows, allowed)
    assert rows <= sum(sizes) < rows + BLOCK
    assert set(sizes) <= set(allowed)


@pytest.mark.parametrize(
    ("context", "candidates", "top", "sentence"),
    [
        (USER, ITEMS, 0, "top: 0 is no number of candidates"),
        ([], ITEMS, 1, "context: is list where a mapping from fields to values is expected"),
        (USER, [*ITEMS, 5], 1, "candidates, row 150: is 5 where a mapping"),
        (USER, [{"item": 1}], 1, "context, row 0: there is no field 'tags'"),
        ({**USER, "user": 60}, ITEMS, 1, "context, row 0: 'user' holds the id 60"),
        (USER, [*ITEMS, {**ITEMS[0], "item": 200}], 1, "candidates, row 150: 'item' holds the id 200"),
        (USER, [*ITEMS, {**ITEMS[0], "price": 1e300}], 1, "candidates, row 150: column 'price' holds 1e.300"),
        (USER, [*ITEMS, {"item": 1, "tags": [True], "price": 1}], 1, "candidates, row 150: 'tags' holds"),
    ],
)
def test_what_is_refused(scorer: dlrm_mtl.Scorer, context: Any, candidates: Any, top: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        scorer.rank(context, candidates, top)


FORMULAS = [
    ({"sum": {"a": 1}}, lambda p: p["a"]),
    ({"sum": {"a": 2, "b": -0.5, "n": 3}}, lambda p: 2 * p["a"] - 0.5 * p["b"] + 3 * p["n"]),
    ({"product": {"a": 1, "b": 0.5}}, lambda p: p["a"] * p["b"] ** 0.5),
    ({"product": {"a": 1, "b": -2}}, lambda p: p["a"] / p["b"] ** 2),
    (
        {"sum": [{"weight": 2, "product": {"a": 1, "b": 1}}, {"product": {"b": 2}}]},
        lambda p: 2 * p["a"] * p["b"] + p["b"] ** 2,
    ),
    (
        {"product": [{"exponent": 0.5, "sum": {"a": 1, "b": 9}}, {"sum": {"a": 1}}]},
        lambda p: (p["a"] + 9 * p["b"]) ** 0.5 * p["a"],
    ),
]


@pytest.mark.parametrize(("content", "expected"), FORMULAS)
def test_a_formula_is_what_it_says(content: dict[str, Any], expected: Any) -> None:
    rng = np.random.default_rng(1)
    predictions = {name: rng.uniform(1e-3, 1, 97).astype(np.float32) for name in "ab"}
    predictions["n"] = rng.normal(size=97).astype(np.float32)
    found = combined(ScoreFormula.model_validate(content), predictions)
    wide = {name: values.astype(np.float64) for name, values in predictions.items()}
    np.testing.assert_allclose(found, expected(wide), rtol=2e-7)
    assert found.dtype == np.float32
    alone = [
        combined(ScoreFormula.model_validate(content), {k: v[n : n + 1] for k, v in predictions.items()})
        for n in range(97)
    ]
    assert np.array_equal(np.concatenate(alone), found), "the score depends on its own row only"


@settings(max_examples=200)
@given(
    exponents=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    values=st.lists(st.sampled_from([0.0, 1e-45, 1e-38, 1e-7, 0.3, 1.0]), min_size=3, max_size=3),
)
def test_a_score_is_always_a_finite_number(exponents: list[float], values: list[float]) -> None:
    predictions = {name: np.array([value], np.float32) for name, value in zip("abc", values, strict=True)}
    by_task = dict(zip("abc", exponents, strict=True))
    for content in (
        {"product": by_task},
        {"sum": [{"weight": 1e6, "product": by_task}, {"weight": -1e6, "product": {"a": -20}}]},
    ):
        assert np.isfinite(combined(ScoreFormula.model_validate(content), predictions)).all()


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        ("clicks", r"serving\.score\.sum\.clicks: there is no task 'clicks'; did you mean 'click'"),
        ({"product": {"click": "a"}}, r"serving\.score\.product\.click: 'a' does not fit"),
        ({"sum": {"click": 1}, "product": {"click": 1}}, r"serving\.score: give either sum or product"),
        ({"sum": [{"weight": 1}]}, r"serving\.score\.sum\.0\.product: this key is required"),
        ({"product": [{"sum": {"click": -1}}]}, r"serving\.score\.product\.0\.sum\.click: -1 does not fit"),
        (5, r"serving\.score: 5 does not fit: name a task, or give a sum or a product"),
        ({"product": {"buy": 1}}, r"serving\.score\.product\.buy: 'buy' predicts a number, not a probability"),
    ],
)
def test_formulas_that_are_refused(tmp_path: Path, score: Any, sentence: str) -> None:
    content = synthetic.config(tmp_path)
    content["serving"] = {"score": score}
    content["tasks"] = [{"name": "click"}, {"name": "buy", "loss": "mean_squared_error"}]
    with pytest.raises(UserError, match=sentence):
        dlrm_mtl.load_config(commands.write_config(tmp_path / "run.yaml", content))
