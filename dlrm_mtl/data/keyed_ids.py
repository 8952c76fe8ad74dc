"""The ids of a batch for models: TorchRec's KeyedJaggedTensor, or its plain PyTorch equivalent for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class FeatureIds(Protocol):
    """Ids of one feature; TorchRec's JaggedTensor is an implementation."""

    def values(self) -> Tensor:
        """Ids [N] row by row, or their vectors [N, D]."""
        ...

    def lengths(self) -> Tensor:
        """Number of ids of each row, [B]."""
        ...


class KeyedIds(Protocol):
    """Ids of F features in B rows; TorchRec's KeyedJaggedTensor is an implementation."""

    def keys(self) -> list[str]:
        """Names of the features."""
        ...

    def values(self) -> Tensor:
        """Ids [N] int64: feature by feature, and row by row within a feature."""
        ...

    def lengths(self) -> Tensor:
        """Number of ids, [F * B] int32."""
        ...

    def stride(self) -> int:
        """Number of rows B."""
        ...

    def __getitem__(self, key: str) -> FeatureIds:
        """Ids of one feature."""
        ...


class ModelBatch(Protocol):
    """The part of a batch that models read; :class:`~dlrm_mtl.data.batch.Batch` is an implementation."""

    @property
    def sparse(self) -> KeyedIds:
        """Sparse and sequence features."""
        ...

    @property
    def dense(self) -> Tensor:
        """Dense features, [B, D] float32."""
        ...

    @property
    def labels(self) -> Tensor:
        """Labels, [B, T] float32; only in training."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights, [B, T] float32; only in training."""
        ...


class PlainFeatureIds:
    """One feature of a :class:`PlainKeyedIds`, or the vectors of its ids."""

    def __init__(self, values: Tensor, lengths: Tensor) -> None:
        self._values = values
        self._lengths = lengths

    def values(self) -> Tensor:
        """Ids [N] row by row, or their vectors [N, D]."""
        return self._values

    def lengths(self) -> Tensor:
        """Number of ids of each row, [B]."""
        return self._lengths


class PlainKeyedIds:
    """Ids of several features, without TorchRec.

    Args:
        keys: names of the F features.
        values: [N] int64, feature by feature, and row by row within a feature.
        lengths: [F * B] int32.
        stride: number of rows B.
    """

    def __init__(self, keys: Sequence[str], values: Tensor, lengths: Tensor, stride: int) -> None:
        self._keys = list(keys)
        self._values = values
        self._lengths = lengths
        self._stride = stride
        sizes = lengths.view(len(self._keys), -1).sum(dim=1).tolist() if self._keys else []
        self._by_key = {
            key: PlainFeatureIds(part, lengths[number * stride : (number + 1) * stride])
            for number, (key, part) in enumerate(zip(self._keys, values.split(sizes), strict=True))
        }

    def keys(self) -> list[str]:
        """Names of the features."""
        return self._keys

    def values(self) -> Tensor:
        """Ids [N] int64."""
        return self._values

    def lengths(self) -> Tensor:
        """Number of ids, [F * B] int32."""
        return self._lengths

    def stride(self) -> int:
        """Number of rows B."""
        return self._stride

    def __getitem__(self, key: str) -> PlainFeatureIds:
        """Ids of one feature."""
        return self._by_key[key]


def like(sparse: KeyedIds, keys: Sequence[str], values: Sequence[Tensor], lengths: Sequence[Tensor]) -> KeyedIds:
    """Other features of the same rows, of the type of ``sparse``.

    Args:
        sparse: ids whose type and number of rows are taken.
        keys: names of the features.
        values: ids [N] of each feature.
        lengths: numbers of ids [B] of each feature, or concatenated for consecutive features.
    """
    made: KeyedIds = type(sparse)(
        keys=list(keys),
        values=torch.cat(list(values)),
        lengths=torch.cat(list(lengths)),
        stride=sparse.stride(),
    )  # type: ignore[call-arg]
    return made
