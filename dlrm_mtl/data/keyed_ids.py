"""The ids of a batch as models see them: TorchRec's KeyedJaggedTensor, or the same in plain PyTorch for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class FeatureIds(Protocol):
    """The ids of one feature; TorchRec's JaggedTensor is one."""

    def values(self) -> Tensor:
        """[N] the ids row by row, or [N, D] their vectors."""
        ...

    def lengths(self) -> Tensor:
        """[B] ids of each row."""
        ...


class KeyedIds(Protocol):
    """The ids of F features in B rows; TorchRec's KeyedJaggedTensor is one."""

    def keys(self) -> list[str]:
        """Names of the features."""
        ...

    def values(self) -> Tensor:
        """[N] int64: feature by feature, and within a feature row by row."""
        ...

    def lengths(self) -> Tensor:
        """[F * B] int32."""
        ...

    def stride(self) -> int:
        """B."""
        ...

    def __getitem__(self, key: str) -> FeatureIds:
        """The ids of one feature."""
        ...


class ModelBatch(Protocol):
    """What models read of a batch; :class:`~dlrm_mtl.data.batch.Batch` is one."""

    @property
    def sparse(self) -> KeyedIds:
        """Sparse and sequence features."""
        ...

    @property
    def dense(self) -> Tensor:
        """[B, D] float32."""
        ...

    @property
    def labels(self) -> Tensor:
        """[B, T] float32; in training only."""
        ...

    @property
    def weights(self) -> Tensor:
        """[B, T] float32; in training only."""
        ...


class PlainFeatureIds:
    """One feature of a :class:`PlainKeyedIds`, or the vectors of its ids."""

    def __init__(self, values: Tensor, lengths: Tensor) -> None:
        self._values = values
        self._lengths = lengths

    def values(self) -> Tensor:
        """[N] ids row by row, or [N, D] vectors."""
        return self._values

    def lengths(self) -> Tensor:
        """[B] ids of each row."""
        return self._lengths


class PlainKeyedIds:
    """Ids without TorchRec.

    Args:
        keys: names of the F features.
        values: [N] int64, feature by feature, and within a feature row by row.
        lengths: [F * B] int32.
        stride: B.
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
        """[N] int64."""
        return self._values

    def lengths(self) -> Tensor:
        """[F * B] int32."""
        return self._lengths

    def stride(self) -> int:
        """B."""
        return self._stride

    def __getitem__(self, key: str) -> PlainFeatureIds:
        """The ids of one feature."""
        return self._by_key[key]


def like(sparse: KeyedIds, keys: Sequence[str], values: Sequence[Tensor], lengths: Sequence[Tensor]) -> KeyedIds:
    """Other features of the same rows, of the type of ``sparse``.

    Args:
        sparse: whose type and number of rows it has.
        keys: names of the features.
        values: of each feature the ids [N].
        lengths: of each feature, or of several that follow each other, the numbers of ids [B].
    """
    made: KeyedIds = type(sparse)(
        keys=list(keys),
        values=torch.cat(list(values)),
        lengths=torch.cat(list(lengths)),
        stride=sparse.stride(),
    )  # type: ignore[call-arg]
    return made
