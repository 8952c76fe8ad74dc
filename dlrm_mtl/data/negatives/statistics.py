"""Statistics for drawing negatives: items of a training split, their counts and features, and known pairs.

One pass reads the columns that are needed. It can be shared: each process reads a part of the rows, and the parts are
merged. The result does not depend on the number of parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.randomness import Bits
from dlrm_mtl.data.block_reader import BlockReader, BlocksAhead
from dlrm_mtl.data.chosen_columns import Selection, select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import Split
from dlrm_mtl.data.decode import ABSENT, Array, DecodedBlock, Lists
from dlrm_mtl.data.file_checks import Layout, check_files
from dlrm_mtl.data.negatives.check import binary_labels, check_columns, check_negatives
from dlrm_mtl.data.negatives.config import NegativesConfig
from dlrm_mtl.data.negatives.known_pairs import Ids, distinct, pair_codes
from dlrm_mtl.data.order import cut

MERGE_AT = 1 << 20
"""Smallest number of new items and pairs that are merged with the earlier ones."""


@dataclass
class ItemStatistics:
    """Result of one pass over rows of a training split."""

    items: Ids
    """[n] ids that occur, ascending, without 0 (unknown); empty if no list of items is needed."""
    counts: Ids
    """[n], number of rows of each item."""
    along: dict[str, Lists]
    """Sparse and sequence features of the items, by name: list i as in the last row with items[i]."""
    along_dense: dict[str, Array]
    """Dense features of the items, by name: [n] float32, standardised as in a batch."""
    pairs: Bits
    """[P] ascending :func:`~dlrm_mtl.data.negatives.known_pairs.pair_codes` of user and item in rows with a positive label."""

    @property
    def size(self) -> int:
        """Number of items and pairs."""
        return len(self.items) + len(self.pairs)


def read_statistics(
    split: Split, config: DataConfig, labels: Sequence[str], part: int = 0, parts: int = 1
) -> ItemStatistics:
    """Read one of ``parts`` equal shares of the rows; merge all shares, in order, with :func:`merge`.

    Memory holds the result twice, and 1 + 2 ``config.read_threads`` blocks of the columns read.

    Raises:
        UserError: `data.negatives` does not fit the data set, or a value cannot be used.
    """
    negatives = config.negatives
    assert negatives is not None
    check_negatives(split.spec, config, labels)
    selection = _needed(select(split.spec, config, labels), negatives)
    layout = check_files(split.files, selection)
    check_columns(layout, negatives)
    columns = _Columns(layout, negatives)
    if not negatives.reads_split:
        return columns.nothing()
    return merge(map(columns.statistics, _blocks(split, config, layout, part, parts))) or columns.nothing()


def merge(parts: Iterable[ItemStatistics]) -> ItemStatistics | None:
    """Statistics of the rows of all ``parts``, given in the order of the rows; None if there are no parts.

    Parts are merged from time to time, so that memory stays below twice the size of the result.
    """
    kept: list[ItemStatistics] = []
    for part in parts:
        kept.append(part)
        if sum(each.size for each in kept[1:]) > max(kept[0].size, MERGE_AT):
            kept = [_merged(kept)]
    return _merged(kept) if kept else None


def take(lists: Lists, rows: Ids) -> Lists:
    """Lists with the numbers ``rows``."""
    starts, lengths = lists.offsets[rows], lists.offsets[rows + 1] - lists.offsets[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Lists(lists.values[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets)


def is_id(ids: Array) -> NDArray[np.bool_]:
    """Mask of ids that identify something: neither null nor 0 (unknown)."""
    present: NDArray[np.bool_] = (ids != ABSENT) & (ids != 0)
    return present


def _merged(all_parts: Sequence[ItemStatistics]) -> ItemStatistics:
    if len(all_parts) == 1:
        return all_parts[0]
    found = np.concatenate([part.items for part in all_parts])
    items = distinct(found)
    place = np.searchsorted(items, found)
    counts = np.zeros(len(items), dtype=np.int64)
    np.add.at(counts, place, np.concatenate([part.counts for part in all_parts]))
    last = np.empty(len(items), dtype=np.int64)
    last[place] = np.arange(len(found))  # of several numbers for one position, numpy keeps the last
    first = all_parts[0]
    return ItemStatistics(
        items,
        counts,
        {name: take(_joined([part.along[name] for part in all_parts]), last) for name in first.along},
        {name: np.concatenate([part.along_dense[name] for part in all_parts])[last] for name in first.along_dense},
        distinct(np.concatenate([part.pairs for part in all_parts])),
    )


class _Columns:
    """Statistics of blocks."""

    def __init__(self, layout: Layout, negatives: NegativesConfig) -> None:
        self._layout = layout
        self._negatives = negatives
        names = [feature.name for feature in layout.selection.sparse]
        self._singles = [name for name in names if name not in layout.lists]
        self._lists = [name for name in names if name in layout.lists]
        self._dense = [feature.name for feature in layout.selection.dense]
        self._labels = len(layout.selection.labels)

    def nothing(self) -> ItemStatistics:
        """Statistics of zero rows."""
        none = np.empty(0, np.int64)
        along = [name for name in (*self._singles, *self._lists) if name in self._negatives.along]
        return ItemStatistics(
            none,
            none,
            {name: Lists(none, np.zeros(1, np.int64)) for name in along},
            {name: np.empty(0, np.float32) for name in self._dense},
            np.empty(0, np.uint64),
        )

    def statistics(self, block: DecodedBlock) -> ItemStatistics:
        """Statistics of the rows of ``block``."""
        negatives, result = self._negatives, self.nothing()
        item = block.ids[self._singles.index(negatives.item)]
        valid = is_id(item)
        if negatives.user is not None and self._labels:
            user = block.ids[self._singles.index(negatives.user)]
            dense = len(self._dense)
            positive = (block.numbers[dense : dense + self._labels] > 0).any(axis=0)
            known = np.flatnonzero(valid & positive & is_id(user))
            result.pairs = distinct(pair_codes(user[known].astype(np.int64), item[known].astype(np.int64)))
        if not negatives.counts_items:
            return result
        rows = np.flatnonzero(valid)
        items, counts = np.unique(item[rows], return_counts=True)
        result = replace(result, items=items.astype(np.int64), counts=counts.astype(np.int64))
        if not negatives.along:
            return result
        last = np.empty(len(items), dtype=np.int64)
        last[np.searchsorted(items, item[rows])] = rows
        result.along = {name: self._taken(block, name, last) for name in result.along}
        result.along_dense = {name: block.numbers[place, last] for place, name in enumerate(self._dense)}
        return result

    def _taken(self, block: DecodedBlock, name: str, rows: Ids) -> Lists:
        if name in self._lists:
            lists = take(block.lists[self._lists.index(name)], rows)
        else:
            ids = block.ids[self._singles.index(name), rows]
            there = ids != ABSENT
            lists = Lists(ids[there], np.concatenate([[0], np.cumsum(there)]))
        return Lists(lists.values.astype(np.int64), lists.offsets)


def _needed(selection: Selection, negatives: NegativesConfig) -> Selection:
    """Columns of a run that the pass must read."""
    avoids = negatives.known == "avoid"
    along = negatives.along if negatives.counts_items else []
    names = {negatives.item, *along, *([negatives.user] if avoids else [])}
    labels = {label.name: label for label in selection.labels}
    return replace(
        selection,
        sparse=tuple(feature for feature in selection.sparse if feature.name in names),
        dense=tuple(feature for feature in selection.dense if feature.name in names),
        labels=tuple(labels[name] for name in binary_labels(selection)) if avoids else (),
        weight=None,
        vocabulary_sizes={name: size for name, size in selection.vocabulary_sizes.items() if name in names},
    )


def _blocks(split: Split, config: DataConfig, layout: Layout, part: int, parts: int) -> Iterator[DecodedBlock]:
    groups = [(file, group) for file in split.files for group in range(file.metadata.num_row_groups)]
    rows = [file.metadata.row_group(group).num_rows for file, group in groups]
    share = cut(rows, parts, config.block_rows)[part]
    reader = BlockReader(groups, layout, lambda feature, count: None)
    pool = ThreadPoolExecutor(config.read_threads, thread_name_prefix="statistics-reader")
    try:
        jobs = (partial(reader.read, block, None) for block in share.blocks)
        yield from BlocksAhead(pool, jobs, config.read_threads)
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: Sequence[Lists]) -> Lists:
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
    return Lists(np.concatenate([part.values for part in parts]), np.concatenate([[0], *offsets]))
