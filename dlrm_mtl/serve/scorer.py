"""Scoring rows with a bundle, without TorchRec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.join_rows import Joined
from dlrm_mtl.data.keyed_ids import PlainKeyedIds
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.models.input_sums import input_sums
from dlrm_mtl.serve.bundle import GOLDEN_FILE, ServedModel, check_bundle, read_model
from dlrm_mtl.serve.calibration import read_calibration
from dlrm_mtl.serve.encode import Policies, RowEncoder
from dlrm_mtl.serve.golden import compare_scores, compare_sums, read_golden
from dlrm_mtl.serve.load import served_input, served_model
from dlrm_mtl.serve.ranking import Ranked, best, merged
from dlrm_mtl.serve.raw.open import RowKind, open_reader
from dlrm_mtl.serve.request_parts import CANDIDATES, RequestParts, split_fields
from dlrm_mtl.serve.rows import Rows, Where
from dlrm_mtl.tasks.targets import label_columns, predictions

BLOCK = 64
"""Number of rows that pass the layers at a time, padded at the end: the order of a product's sums depends on it.

It may also depend on a row's position in the block: MKL treats rows that are not aligned in memory differently.
"""
LARGE_BLOCKS = (512, 256)
"""Numbers of rows, multiples of :data:`BLOCK`, that many rows are cut into first, if they give the same bits as small blocks.

That depends on the library and the processor, which choose the order of a product's sums by its shape. So both are compared on
the golden rows when a bundle is loaded.
"""
LOOKED_UP = 128 * BLOCK
"""Number of rows that are looked up at a time."""

SPLITS = 64
"""Number of ways to divide the fields between context and candidates that are kept ready."""

Scores = dict[str, NDArray[np.float32]]
"""Scores by task, [N] float32."""


class Scorer:
    """A trained model that scores rows: probabilities of binary tasks, predictions of others.

    The score of a row does not depend on the other rows or their number. Its position in a block of 64 may change the last
    bits (below 1e-6): layers whose width is not a multiple of 4 then add in another order. Tables are mapped from the
    bundle's file, so processes on one machine share their memory. Methods may be called from several threads.

    Args:
        bundle: folder that ``dlrm-mtl export`` wrote.
        missing: policy for fields that a row lacks, see :data:`~dlrm_mtl.serve.encode.Policy`; default: ``refuse``.
        unknown: policy for ids outside the vocabulary; default: according to the run's `data.out_of_range`, and ``unknown``
            for unbounded ids.
        plugins: modules that register parts of the model; they are imported, which runs them.
        check_all: check every page of the tables now; default: each when it is first used, so that loading takes no longer for
            large tables.
        rows: rows to score: those of the ``prepared`` data set, or ``raw`` ones, which the bundle prepares like `prepare`.

    Raises:
        UserError: the folder holds no bundle, or no raw rows, a byte was changed, or golden rows do not get their scores.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        missing: Policies | None = None,
        unknown: Policies | None = None,
        plugins: Sequence[str] = (),
        check_all: bool = False,
        rows: RowKind = "prepared",
    ) -> None:
        self.folder = Path(bundle)
        self.version = check_bundle(self.folder)
        """Version that distinguishes bundles; part of every answer of the server."""
        served = read_model(self.folder, list(plugins))
        self.name, self.step = served.name, served.step
        self.tasks = [task.name for task in served.tasks]
        """Names of the scores."""
        self.formula = served.score or ScoreFormula(sum={self.tasks[0]: 1.0})
        """Score that candidates are ordered by."""
        self.task_configs = served.tasks
        """Configurations of the tasks."""
        labels = {label.name: label.source for label in served.dataset.labels}
        self.label_columns = {name: labels[name] for name in label_columns(served.tasks)}
        """Column of each label that the tasks have; rows to score need none of them."""
        self._keys = [*served.data.sparse, *served.data.sequence]
        given = served_input(self.folder, served)
        self._model, self.tables = served_model(self.folder, served, given)
        """The tables by name."""
        if check_all:
            for table in self.tables.values():
                table.check()
        self._large_blocks: list[int] = []
        self.golden_difference = self._check_golden(given.encoder(), served)
        """Largest difference from the trained model's scores on the golden rows; 0 means equal bits."""
        self.calibration = read_calibration(self.folder)
        """Maps from raw predictions to those that are returned; None without calibration."""
        self._encoder = given.encoder(missing, unknown, open_reader(self.folder, served, rows))
        own_ids = type(self._model).ids is not RankingModel.ids  # made of several features of a row
        self._parts = None if own_ids else lru_cache(SPLITS)(self._parts_for)

    def score(self, rows: Rows, *, where: Where = Where(), raw: bool = False) -> Scores:  # noqa: B008  (immutable)
        """Scores of ``rows`` by task, [N] float32 each, in the order of the rows.

        Args:
            rows: a list of mappings from the data set's columns to values, a pyarrow.Table or RecordBatch, or a
                pandas.DataFrame, of prepared or raw rows as the scorer was told. Columns that the model does not read are
                ignored.
            where: origin of the rows, for errors.
            raw: True for predictions before calibration, as the trained model makes them.

        Raises:
            UserError: a field is missing, or a value is not allowed; the row and the field are named. A
                :class:`~dlrm_mtl.serve.pages.DamagedPageError` if a page of the tables does not have its checksum.
        """
        encoded = self._encoder.encode(rows, where)
        scores = self._by_task(encoded.rows, ((self._features(part), part.dense) for part in encoded.parts(LOOKED_UP)))
        return scores if raw else self._calibrated(scores)

    def rank(
        self,
        context: Mapping[str, Any],
        candidates: Rows,
        top: int | None = None,
        *,
        where: Where = CANDIDATES,
    ) -> Ranked:
        """The best of ``candidates`` for one user, ordered by the bundle's score.

        The predictions are those of :meth:`score` for rows with the fields of both, bit for bit. A field of a candidate comes
        before the field of the same name in ``context``.

        Args:
            context: fields that all candidates share, such as the user's.
            candidates: fields of N items, in any form that :meth:`score` takes.
            top: number of candidates to return; default: all of them.
            where: origin of the candidates, for errors.

        Raises:
            UserError: a field is missing in both, or a value is not allowed.
        """
        if not isinstance(context, Mapping):
            raise UserError(f"context: is {type(context).__name__} where a mapping from fields to values is expected.")
        if self._parts is None or (isinstance(candidates, Sized) and not len(candidates)):
            return best(self.formula, self.score(merged(context, candidates), where=where), top, where)
        fields, candidates = split_fields(context, candidates, where)
        count, inputs = self._parts(self._encoder.within(fields)).encode(context, candidates, where, LOOKED_UP)
        return best(self.formula, self._calibrated(self._by_task(count, inputs)), top, where)

    def _calibrated(self, scores: Scores) -> Scores:
        known = self.calibration
        return scores if known is None else {task: known.apply(task, values) for task, values in scores.items()}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of fields and ids that a policy was applied to so far, by ``missing`` and ``unknown``, then by feature."""
        return self._encoder.counts

    @property
    def encoder(self) -> RowEncoder:
        """The encoder of rows, which knows the fields that are read."""
        return self._encoder

    def _parts_for(self, candidates: frozenset[str]) -> RequestParts:
        """Model input for requests in which these features are read from the candidates."""
        return RequestParts(self._model.lookup, self.tables, self._encoder, candidates)

    def _by_task(self, rows: int, inputs: Iterable[tuple[Tensor, Tensor]]) -> Scores:
        """Scores of ``rows`` rows by task, from their vectors [n, W] and numbers [n, D], piece by piece."""
        scores = np.empty((rows, len(self.tasks)), np.float32)
        start = 0
        for features, dense in inputs:
            scores[start : start + len(features)] = self._scores(features, dense)
            start += len(features)
        return {task: np.ascontiguousarray(scores[:, number]) for number, task in enumerate(self.tasks)}

    @torch.inference_mode()
    def _features(self, joined: Joined) -> Tensor:
        """Vectors of the rows, [N, W]."""
        sparse = PlainKeyedIds(self._keys, joined.values, joined.lengths, joined.rows)
        features: Tensor = self._model.lookup(self._model.ids(ServedBatch(sparse, joined)))
        return features

    @torch.inference_mode()
    def _scores(self, features: Tensor, dense: Tensor) -> NDArray[np.float32]:
        """Predictions [N, T] from vectors [N, W] and numbers [N, D]."""
        large = self._large_blocks if torch.get_num_threads() == 1 else []  # several may add in another order
        blocks, start = [], 0
        for size in block_sizes(len(features), [*large, BLOCK]):
            part = slice(start, start + size)
            blocks.append(self._model.logits_of(_padded(features[part], size), _padded(dense[part], size)))
            start += size
        scores: NDArray[np.float32] = predictions(torch.cat(blocks), self.task_configs)[: len(features)].numpy()
        return scores

    def _check_golden(self, encoder: RowEncoder, served: ServedModel) -> float:
        rows, wanted = read_golden(self.folder / GOLDEN_FILE)
        (joined,) = encoder.encode(rows, Where(str(self.folder / GOLDEN_FILE))).parts(len(rows))
        features = self._features(joined)
        lookup = self._model.lookup
        sums = input_sums(features, lookup.widths, lookup.names, joined.dense, served.data.dense)
        compare_sums(sums, served.golden, str(self.folder))
        scores = self._scores(features, joined.dense)
        self._large_blocks = [size for size in LARGE_BLOCKS if self._same_in_blocks_of(size, features, joined.dense)]
        return compare_scores({task: scores[:, n] for n, task in enumerate(self.tasks)}, wanted, str(self.folder))

    @torch.inference_mode()
    def _same_in_blocks_of(self, rows: int, features: Tensor, dense: Tensor) -> bool:
        """True if blocks of so many of these rows, repeated to fill two, give the same bits as small ones."""
        if torch.get_num_threads() != 1 or not len(features):
            return False
        copies = -(-2 * rows // len(features))
        features, dense = features.repeat(copies, 1)[: 2 * rows], dense.repeat(copies, 1)[: 2 * rows]
        small, large = (
            torch.cat(
                [self._model.logits_of(*part) for part in zip(features.split(size), dense.split(size), strict=True)]
            )
            for size in (BLOCK, rows)
        )
        return torch.equal(small, large)


class ServedBatch:
    """The part of a batch that models read."""

    def __init__(self, sparse: PlainKeyedIds, joined: Joined) -> None:
        self.sparse = sparse
        self.dense, self.labels, self.weights = joined.dense, joined.labels, joined.weights


def block_sizes(rows: int, sizes: Sequence[int]) -> list[int]:
    """Numbers of rows of the blocks, the last of which is padded; none for 0 rows.

    Args:
        rows: number of rows.
        sizes: descending multiples of :data:`BLOCK`, which is the last one.
    """
    rest = -(-rows // BLOCK) * BLOCK
    found: list[int] = []
    for size in sizes:
        whole, rest = divmod(rest, size)
        found += [size] * whole
    return found


def _padded(rows: Tensor, size: int) -> Tensor:
    """Rows padded with zeros to [size, n]."""
    missing = size - rows.shape[0]
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows
