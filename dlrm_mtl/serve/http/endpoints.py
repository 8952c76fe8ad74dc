"""Requests for scores: from the bytes of a body to those of the answer, in a worker's thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.http.arrow_bodies import ARROW_TYPE, read_table, write_table
from dlrm_mtl.serve.http.json_bodies import read_object, read_value, take
from dlrm_mtl.serve.http.limits import RefusedRequest, ServerLimits
from dlrm_mtl.serve.http.serving import ServedVersion
from dlrm_mtl.serve.pages import DamagedPageError
from dlrm_mtl.serve.rows import Where
from dlrm_mtl.serve.scorer import Scorer

JSON_TYPE = "application/json"


@dataclass(frozen=True)
class ScoringRequest:
    """A request as it arrived."""

    body: bytes
    arrow: bool
    """True if the body is an Arrow stream; otherwise it is JSON."""
    answer_arrow: bool
    """True if the answer is to be an Arrow stream."""


@dataclass(frozen=True)
class ScoringAnswer:
    """An answer as it is sent."""

    body: bytes
    media_type: str
    rows: int
    """Number of scored rows."""
    entry: Callable[[], dict[str, Any]]
    """Makes the request and its scores for a log."""


Endpoint = Callable[[ServedVersion, ScoringRequest, ServerLimits], ScoringAnswer]


def score(model: ServedVersion, request: ScoringRequest, limits: ServerLimits) -> ScoringAnswer:
    """Scores of rows.

    Raises:
        RefusedRequest: the request is malformed, too large, or holds rows that the model refuses.
    """
    if request.arrow:
        rows: Any = read_table(request.body, model.scorer.encoder.fields, limits.rows)
    else:
        rows = take(read_object(request.body), {"rows": list}, {})["rows"]
        _bounded(len(rows), limits, "rows")
    scores = _refusing(lambda: model.scorer.score(rows, where=Where("body")))
    _finite(scores, "row")

    def entry() -> dict[str, Any]:
        return {"rows": _plain(rows, model), "scores": _lists(scores)}

    if request.answer_arrow:
        return _arrow(model, scores, len(rows), entry)
    return _json(model, {"scores": _lists(scores)}, len(rows), entry)


def rank(model: ServedVersion, request: ScoringRequest, limits: ServerLimits) -> ScoringAnswer:
    """The best candidates of a user. In an Arrow stream rows are candidates, and the schema's metadata have the other keys.

    Raises:
        RefusedRequest: see :func:`score`.
    """
    if request.arrow:
        candidates: Any = read_table(request.body, model.scorer.encoder.fields, limits.rows)
        given = candidates.schema.metadata or {}
        content = {"context": read_object(given.get(b"context", b"")), "top": read_value(given.get(b"top", b"null"))}
        content = take(content, {"context": dict}, {"top": int})
    else:
        content = take(read_object(request.body), {"context": dict, "candidates": list}, {"top": int})
        candidates = content["candidates"]
        _bounded(len(candidates), limits, "candidates")
    context, top = content["context"], content.get("top")
    _bounded_copies(context, len(candidates), limits)
    ranked = _refusing(lambda: model.scorer.rank(context, candidates, top, where=Where("candidates")))
    _finite({"score": ranked.score, **ranked.tasks}, "rank")

    def entry() -> dict[str, Any]:
        (fields,) = _plain([context], model)
        logged = {"context": fields, "candidates": _plain(candidates, model), "top": top}
        return {
            **logged,
            "order": ranked.order.tolist(),
            "score": ranked.score.tolist(),
            "scores": _lists(ranked.tasks),
        }

    if request.answer_arrow:
        tasks = {f"tasks.{task}": values for task, values in ranked.tasks.items()}
        return _arrow(model, {"order": ranked.order, "score": ranked.score, **tasks}, len(candidates), entry)
    answer = {"order": ranked.order.tolist(), "score": ranked.score.tolist(), "tasks": _lists(ranked.tasks)}
    return _json(model, answer, len(candidates), entry)


def describe(scorer: Scorer) -> dict[str, Any]:
    """The model, its tasks, and the fields that it expects of a row, for clients."""
    return {
        "name": scorer.name,
        "step": scorer.step,
        "tasks": scorer.tasks,
        "score": scorer.formula.model_dump(mode="json", exclude_unset=True),
        "features": [
            {"name": feature.name, "field": feature.source, "kind": feature.kind, **policies}
            for feature, policies in scorer.encoder.features
        ],
    }


def _bounded(count: int, limits: ServerLimits, what: str) -> None:
    if count > limits.rows:
        raise RefusedRequest(413, f"body: {count:,} {what} are more than {limits.rows:,}; send fewer in a request.")


def _bounded_copies(context: Mapping[str, Any], count: int, limits: ServerLimits) -> None:
    """Refuse a context that takes too much memory when every candidate has it."""
    size = sum(len(value) if isinstance(value, (list, dict, str)) else 1 for value in context.values())
    if size * count > limits.copies:
        raise RefusedRequest(
            413,
            f"body: {size:,} values of the context for each of {count:,} candidates are more than {limits.copies:,} together; "
            "send shorter lists, or fewer candidates.",
        )


def _refusing(work: Callable[[], Any]) -> Any:
    """The result of ``work``, whose errors are those of the request."""
    try:
        return work()
    except DamagedPageError:
        raise
    except UserError as error:
        raise RefusedRequest(422, " ".join(str(error).split())) from None
    except RecursionError:
        raise RefusedRequest(422, "body: a value is nested too deeply; send numbers and lists.") from None


def _finite(scores: Mapping[str, NDArray[Any]], what: str) -> None:
    """Refuse numbers that are finite themselves, but overflow in the model's layers; JSON has no word for the outcome."""
    for task, values in scores.items():
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(np.argmax(bad))
            raise RefusedRequest(
                422,
                f"body, {what} {row}: task {task!r} has no finite score; one of its numbers is too large: correct it.",
            )


def _lists(scores: Mapping[str, NDArray[Any]]) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in scores.items()}


def _plain(rows: Any, model: ServedVersion) -> list[dict[str, Any]]:
    """Rows with the columns that the model reads, for a log."""
    if not isinstance(rows, list):
        return rows.to_pylist()
    columns = model.scorer.encoder.fields
    return [{name: value for name, value in row.items() if name in columns} for row in rows]


def _json(
    model: ServedVersion, content: Mapping[str, Any], rows: int, entry: Callable[[], dict[str, Any]]
) -> ScoringAnswer:
    text = json.dumps({"version": model.scorer.version, **content}, separators=(",", ":"))
    return ScoringAnswer(text.encode(), JSON_TYPE, rows, entry)


def _arrow(
    model: ServedVersion, columns: Mapping[str, NDArray[Any]], rows: int, entry: Callable[[], dict[str, Any]]
) -> ScoringAnswer:
    return ScoringAnswer(write_table(columns, {"version": model.scorer.version}), ARROW_TYPE, rows, entry)
