"""Skew between a log and training data, feature by feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.serve.skew.data_rows import DataRows
from dlrm_mtl.serve.skew.distance import differing, population_stability
from dlrm_mtl.serve.skew.replay import Limits, Logged, LogReader


@dataclass(frozen=True)
class FeatureSkew:
    """One feature in the log and in the training data."""

    name: str
    missing: float
    """Fraction of the log's rows without the field."""
    empty: tuple[float, float]
    """Fraction of rows without a value, in training and in the log."""
    unknown: tuple[float, float]
    """Fraction of ids that are unknown, in training and in the log."""
    stability: float
    """Population stability index."""
    differs: float | None
    """Fraction of the rows found in both by their keys whose values differ; None without keys."""
    different: bool
    """True if this is skew."""


def compare_with_data(
    reader: LogReader, logged: Logged, data: str, split: str, keys: Sequence[str], limits: Limits
) -> tuple[list[FeatureSkew], int]:
    """Skew of every feature, the largest first, and the number of rows found in both by their keys.

    Args:
        reader: reader of the log.
        logged: the log.
        data: folder of a data set, path or URI, such as that of training.
        split: its split.
        keys: columns that identify a row; without any, distributions are compared.
        limits: limits of what is skew.

    Raises:
        UserError: the data set is another one, lacks a column, or holds no row of the log.
    """
    dataset = open_dataset(data, "--data")
    check_same_features(reader, dataset)
    table = DataRows(dataset, split, reader.features)
    pairs = None
    if keys:
        training, pairs = table.with_keys(keys, set(logged.keys))
        positions = [(row, pairs[key]) for row, key in enumerate(logged.keys) if key in pairs]
        if not positions:
            raise UserError(
                f"{data}: split {split!r} has no row of the log by {', '.join(keys)}; name other columns with --on."
            )
        log_rows, data_rows = (np.array(each, np.int64) for each in zip(*positions, strict=True))
        training = {name: values.take(data_rows) for name, values in training.items()}
        values = {name: each.take(log_rows) for name, each in logged.values.items()}
    else:
        training, values = table.sample(), logged.values
    found = []
    for feature in reader.features:
        one, other = training[feature.name], values[feature.name]
        size = reader.sizes.get(feature.name)
        unknown = (0.0, 0.0) if feature.kind == "dense" else (one.unknown(size), other.unknown(size))
        differs = float(differing(one, other, feature.kind).mean()) if keys else None
        stability = population_stability(one, other, feature.kind)
        missing = logged.missing.get(feature.name, 0) / logged.replay.rows
        shares = (missing, abs(one.empty - other.empty), abs(unknown[0] - unknown[1]))
        different = bool(differs) if keys else stability > limits.stability or max(shares) > limits.share
        found.append(
            FeatureSkew(feature.name, missing, (one.empty, other.empty), unknown, stability, differs, different)
        )
    found.sort(key=lambda each: (-(each.differs or 0.0), not each.different, -each.stability, -each.missing))
    return found, 0 if pairs is None else len(values[reader.features[0].name].lengths)


def check_same_features(reader: LogReader, dataset: Dataset) -> None:
    """Check that a data set has the features of the bundle.

    Raises:
        UserError: the first feature that is missing or another one.
    """
    for feature in reader.features:
        own = next((each for each in dataset.spec.features if each.name == feature.name), None)
        if own is None:
            hint = suggest(feature.name, [each.name for each in dataset.spec.features])
            raise UserError(f"{dataset.path}: has no feature {feature.name!r}, which the bundle reads; {hint}.")
        pairs = [(feature, own)]
        if feature.kind != "dense":
            pairs.append(
                (
                    reader.spec.feature(reader.spec.vocabulary_owner(feature.name)),
                    dataset.spec.feature(dataset.spec.vocabulary_owner(own.name)),
                )
            )
        for was, now in pairs:
            for key in ("kind", "vocabulary_size", "fingerprint", "transform"):
                before, after = getattr(was, key), getattr(now, key)
                if before != after:
                    raise UserError(
                        f"{dataset.path}: {key} of feature {now.name!r} is {after!r}, and {before!r} in the bundle; name "
                        "the data set of training, or one that was prepared like it."
                    )
