"""Tables of the features, and their initial weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.config import EmbeddingsConfig, PretrainedVectors, TableOverride
from dlrm_mtl.embeddings.kernels.initial_rows import BLOCK_ROWS, BlockPart, fill_blocks

if TYPE_CHECKING:  # imported on use: checking configurations and serving need no TorchRec
    from torchrec import EmbeddingBagCollection, EmbeddingCollection


@dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table; the first four fields are named as in TorchRec's configurations."""

    name: str
    num_embeddings: int
    """Number of rows."""
    embedding_dim: int
    """Number of columns."""
    feature_names: list[str]
    """Features that are looked up in the table, in order."""
    pooled: bool = True
    """True if the lookup sums the rows of a bag, False if it returns a row for every id."""


@dataclass(frozen=True)
class TableSet:
    """Tables of a model, and the pooling of its features.

    Features are in the order of their tables, and in each table's own order; a feature may be looked up in several tables.
    """

    configs: Sequence[EmbeddingTable]
    """Every table, once."""
    stds: Mapping[str, float]
    """Standard deviation of the initial weights, by table."""
    means: frozenset[str] = frozenset()
    """Features whose bags are averaged; all others are summed."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Number of vectors of each flattened feature; their tables are not pooled."""
    padding: Mapping[str, int] = field(default_factory=dict)
    """Number of unused columns, by table: FBGEMM needs a multiple of 4."""
    pretrained: Mapping[str, PretrainedVectors] = field(default_factory=dict)
    """Vectors to begin with, by table."""

    @property
    def pooled(self) -> list[EmbeddingTable]:
        """Tables whose lookup sums the rows of a bag."""
        return [table for table in self.configs if table.pooled]

    @property
    def unpooled(self) -> list[EmbeddingTable]:
        """Tables whose lookup returns a row for every id."""
        return [table for table in self.configs if not table.pooled]

    @property
    def rates(self) -> dict[str, float]:
        """Factor of the learning rate of the tables that have one, by table; 0 for a frozen table."""
        return {name: vectors.factor for name, vectors in self.pretrained.items()}

    @property
    def parameters(self) -> int:
        """Number of weights, without padding."""
        return sum(t.num_embeddings * (t.embedding_dim - self.padding.get(t.name, 0)) for t in self.configs)


class NamedTable(Protocol):
    """A table with the names of its features, such as :class:`EmbeddingTable` and TorchRec's configurations."""

    @property
    def name(self) -> str:
        """Name of the table."""

    @property
    def feature_names(self) -> list[str]:
        """Features that are looked up in it, in order."""


class PooledColumn(NamedTuple):
    """Result of one feature in one pooled table."""

    key: str
    """Its name in the result of a collection, which is TorchRec's: `feature`, or `feature@table` if several tables look the
    feature up."""
    feature: str
    table: str


def pooled_columns(tables: Iterable[NamedTable]) -> list[PooledColumn]:
    """Results of a collection of pooled tables, in the order of ``tables``."""
    pairs = [(feature, table.name) for table in tables for feature in table.feature_names]
    count = Counter(feature for feature, _ in pairs)
    return [
        PooledColumn(f"{feature}@{table}" if count[feature] > 1 else feature, feature, table)
        for feature, table in pairs
    ]


def table_set(spec: DatasetSpec, features: list[str], config: EmbeddingsConfig) -> TableSet:
    """Tables that ``config`` describes for ``features``: one per vocabulary, see :func:`table_configs`.

    A table with a flattened feature returns a row for every id of all its features; the model pools the others.

    Raises:
        UserError: an entry of ``config`` names no table or no feature.
    """
    for name in config.features:
        if name not in features:
            raise UserError(f"model.embeddings.features.{name}: there is no such feature; {suggest(name, features)}.")
    lengths = {name: pooling.length for name, pooling in config.features.items() if pooling.length is not None}
    configs = table_configs(spec, features, config)
    return TableSet(
        configs=[replace(table, pooled=not set(table.feature_names) & set(lengths)) for table in configs],
        stds={table.name: init_std(table.name, config) for table in configs},
        means=frozenset(mean_features(configs, config)),
        lengths=lengths,
        pretrained={name: table.pretrained for name, table in config.tables.items() if table.pretrained is not None},
    )


def padded(columns: int) -> int:
    """Next multiple of 4, a width that FBGEMM can store."""
    return -(-columns // 4) * 4


def table_configs(spec: DatasetSpec, features: list[str], config: EmbeddingsConfig) -> list[EmbeddingTable]:
    """Table of each vocabulary that ``features`` use, named after its owner, in the order of first use.

    Raises:
        UserError: an entry of ``config.tables`` names no table.
    """
    members: dict[str, list[str]] = {}
    for feature in features:
        members.setdefault(spec.vocabulary_owner(feature), []).append(feature)
    for name in config.tables:
        if name not in members:
            raise UserError(f"model.embeddings.tables.{name}: there is no such table; {suggest(name, members)}.")
    overrides = {name: config.tables.get(name, TableOverride()) for name in members}
    return [
        EmbeddingTable(name, spec.vocabulary_size(name), overrides[name].dim or config.dim, names)
        for name, names in members.items()
    ]


def build_tables(tables: Sequence[EmbeddingTable], device: str = "meta") -> EmbeddingBagCollection:
    """Build TorchRec's collection of pooled tables; on the meta device it takes no memory before sharding.

    Bags are summed, and means are taken in the model: TorchRec's own mean adds 1e-6 to the divisor under some sharding
    types and does not divide under grid_shard, so its result depends on the plan.
    """
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType

    configs = [EmbeddingBagConfig(**_shared_fields(table), pooling=PoolingType.SUM) for table in tables]
    return EmbeddingBagCollection(tables=configs, device=torch.device(device))


def build_unpooled_tables(tables: Sequence[EmbeddingTable], device: str = "meta") -> EmbeddingCollection:
    """Build TorchRec's collection of unpooled tables; on the meta device it takes no memory before sharding."""
    from torchrec import EmbeddingCollection, EmbeddingConfig

    configs = [EmbeddingConfig(**_shared_fields(table)) for table in tables]
    return EmbeddingCollection(tables=configs, device=torch.device(device))


def _shared_fields(table: EmbeddingTable) -> dict[str, Any]:
    """Fields that are also in TorchRec's configurations."""
    names = ("name", "num_embeddings", "embedding_dim", "feature_names")
    return {name: getattr(table, name) for name in names}


def torchrec_tables(
    tables: TableSet, device: str = "meta"
) -> tuple[EmbeddingBagCollection | None, EmbeddingCollection | None]:
    """Build TorchRec's collections of the pooled and of the unpooled tables; None for an empty one."""
    pooled, unpooled = tables.pooled, tables.unpooled
    return (
        build_tables(pooled, device) if pooled else None,
        build_unpooled_tables(unpooled, device) if unpooled else None,
    )


def mean_features(tables: Sequence[EmbeddingTable], config: EmbeddingsConfig) -> set[str]:
    """Features whose bags are averaged, by the setting of the feature, of its table, or of all tables, in this order."""

    def pooling(table: str, feature: str) -> str:
        if feature in config.features:
            return config.features[feature].pooling
        override = config.tables.get(table)
        return override.pooling if override is not None and override.pooling is not None else config.pooling

    return {name for table in tables for name in table.feature_names if pooling(table.name, name) == "mean"}


def init_std(table: str, config: EmbeddingsConfig) -> float:
    """Standard deviation of the initial weights of ``table``."""
    override = config.tables.get(table)
    return config.init_std if override is None or override.init_std is None else override.init_std


def table_weights(model: nn.Module) -> dict[str, Any]:
    """Weights [rows, dim] of every table in ``model``, by name of the table.

    A sharded table is a ShardedTensor; a replicated one is a Tensor.
    """
    return {table_name(key): value for key, value in model.state_dict().items() if is_table(key)}


def is_table(parameter: str) -> bool:
    """True if the parameter name is that of a table."""
    return ".embedding_bags." in parameter or ".embeddings." in parameter


def table_name(parameter: str) -> str:
    """Name of the table with this parameter."""
    return parameter.split(".")[-2]


@torch.no_grad()
def initialise(model: nn.Module, stds: Mapping[str, float], seed: int) -> None:
    """Fill the local shards of every table of a sharded model from N(0, std^2), with each table's own deviation.

    The weights of a row depend only on the seed, the table's name and the row. They are the same under every sharding plan
    and world size.
    """
    from dlrm_mtl.embeddings.torchrec.compat import ShardedTensor

    parts: list[BlockPart] = []
    for table, weight in table_weights(model).items():
        std, key = stds[table], f"{seed}/{table}"
        if isinstance(weight, ShardedTensor):
            for shard in weight.local_shards():
                row, column = shard.metadata.shard_offsets
                parts += block_parts(shard.tensor, row, column, int(weight.size(1)), std, key)
        else:
            parts += block_parts(weight, 0, 0, weight.shape[1], std, key)
    fill_blocks(parts)


def fill_rows(weight: Tensor, row: int, column: int, columns: int, std: float, key: str) -> None:
    """Fill ``weight`` [rows, n], the part at (``row``, ``column``) of a table with ``columns`` columns, from N(0, std^2).

    Every block of rows has its own generator, seeded by ``key`` and the block's number.
    """
    fill_blocks(block_parts(weight, row, column, columns, std, key))


def block_parts(weight: Tensor, row: int, column: int, columns: int, std: float, key: str) -> list[BlockPart]:
    """The blocks of :func:`fill_rows`, as far as they are in ``weight``."""
    rows = len(weight)
    parts = []
    for block in range(row // BLOCK_ROWS, -(-(row + rows) // BLOCK_ROWS)):
        start = block * BLOCK_ROWS
        digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=8).digest()
        first, last = max(row, start), min(row + rows, start + BLOCK_ROWS)
        seed = int.from_bytes(digest, "little") >> 1
        parts.append(BlockPart(weight[first - row : last - row], first - start, column, columns, std, seed))
    return parts
