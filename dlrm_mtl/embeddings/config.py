"""The ``model.embeddings`` and ``sharding`` parts of a run's configuration."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict

Pooling = Literal["sum", "mean"]

TableShardingType = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
ShardingType = Literal[TableShardingType, "auto"]


class PretrainedVectors(Strict):
    """Initial weights of a table from Parquet, and how fast they are trained."""

    path: str
    """Parquet file, or a folder of them, with one row for each id; path or URI."""
    id: str | None = None
    """Column of the table's ids, integers. Default: `id`, if there is such a column."""
    value: str | None = None
    """Column of raw values, in place of ids: vocabularies.parquet of the data set turns them into ids. Default: `value`."""
    vector: str = "vector"
    """Column of the vectors: lists of as many numbers as the table has columns."""
    train: Literal["free", "slow", "frozen"] = "free"
    """`free`: like any table; `slow`: at a smaller learning rate; `frozen`: not at all, ids without a vector included."""
    rate: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate of a `slow` table. Default: 0.1."""

    @property
    def factor(self) -> float:
        """Factor of the learning rate; 0 for a frozen table."""
        return {"free": 1.0, "slow": 0.1 if self.rate is None else self.rate, "frozen": 0.0}[self.train]

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_key_and_a_rate_of_slow(self) -> PretrainedVectors:
        if self.id is not None and self.value is not None:
            raise ValueError(f"id {self.id!r} and value {self.value!r} exclude each other; remove one of them.")
        if self.rate is not None and self.train != "slow":
            raise ValueError(
                f"rate {self.rate} has no meaning beside train: {self.train}; remove it, or set train: slow."
            )
        return self


class TableOverride(Strict):
    """Settings of one table that differ from the others."""

    dim: int | None = Field(default=None, gt=0, multiple_of=4)
    """Number of columns of the table; a multiple of 4."""
    pooling: Pooling | None = None
    """Combination of the rows of a bag into one vector."""
    init_std: float | None = Field(default=None, ge=0)
    """Standard deviation of the initial weights."""
    pretrained: PretrainedVectors | None = None
    """Initial weights from a Parquet file: `pretrained: vectors.parquet`, or with options `{path: vectors.parquet, train:
    frozen}`."""


class FeaturePooling(Strict):
    """Combination of the ids of one feature for the model's input."""

    pooling: Literal["sum", "mean", "flattened"]
    """`sum`, `mean`: one vector. `flattened`: one vector for each of the last `length` ids, the most recent first, padded
    with zeros."""
    length: int | None = Field(default=None, gt=0)
    """Number of vectors of a flattened feature; older ids are dropped."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_pooling(cls, value: Any) -> Any:
        return {"pooling": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _length_of_flattened(self) -> FeaturePooling:
        if self.pooling == "flattened" and self.length is None:
            raise ValueError("flattened needs a length, the number of vectors; add one, such as length: 20.")
        if self.pooling != "flattened" and self.length is not None:
            raise ValueError(f"length {self.length} has no meaning beside {self.pooling}; remove it.")
        return self


class EmbeddingsConfig(Strict):
    """Embedding tables: one per vocabulary, shared by all features with that vocabulary."""

    dim: int = Field(default=16, gt=0, multiple_of=4)
    """Number of columns of every table; a multiple of 4."""
    pooling: Pooling = "mean"
    """Combination of the rows of a bag into one vector; without effect for features with one id per row."""
    init_std: float = Field(default=0.01, ge=0)
    """Standard deviation of the initial weights (normal, mean 0)."""
    tables: dict[str, TableOverride] = Field(default_factory=dict)
    """Exceptions, by name of the table, which is the name of the feature that owns its vocabulary."""
    features: dict[str, FeaturePooling] = Field(default_factory=dict)
    """Exceptions, by name of the feature: `history: sum`, or `history: {pooling: flattened, length: 20}`. A table with a
    flattened feature can be sharded table_wise, row_wise, column_wise or data_parallel."""


class TableSharding(Strict):
    """Distribution of one table over processes."""

    type: ShardingType = "auto"
    """The sharding type; `auto` leaves it to the planner."""
    column_shards: int | None = Field(default=None, gt=0)
    """Number of parts that the columns are cut into (column_wise, table_column_wise, grid_shard); each is a multiple of 4
    wide. Default: one per process (column_wise), per process of a host (table_column_wise) or per host (grid_shard)."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_type(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


class CommunicationConfig(Strict):
    """Number formats in which vectors of tables travel between processes; each of fp16 and bf16 halves the bytes."""

    forward: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Format of the vectors, from the processes that hold the rows."""
    backward: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Format of their gradients, on the way back."""


class ShardingConfig(Strict):
    """Distribution of the tables over processes, hosts and devices.

    No choice here changes the trained model, but for the rounding of `communication` in other formats than fp32.
    """

    default: ShardingType = "auto"
    """Sharding type of tables without an entry in `tables`; `auto` leaves it to the planner."""
    tables: dict[str, TableSharding] = Field(default_factory=dict)
    """Exceptions, by name of the table or a pattern of names with `*`, `?` or `[...]`: `user_id: row_wise`, `"user_*": {type:
    column_wise, column_shards: 2}`. A table's own name comes before patterns, and the first pattern that fits counts."""
    communication: CommunicationConfig = CommunicationConfig()
    """Number formats in which vectors and their gradients travel between processes, such as `{forward: fp16, backward: bf16}`.
    With others than fp32 results depend on the plan by their rounding."""
    processes_per_host: int | None = Field(default=None, gt=0)
    """Number of processes of one host for table_row_wise, table_column_wise and grid_shard. Default: the launcher's value
    (LOCAL_WORLD_SIZE). A smaller number divides one machine into several hosts."""
    plan: str | None = None
    """File with the place of every table, written by `dlrm-mtl plan CONFIG --write FILE`, for training. Default: TorchRec's
    planner places the tables, as it does for evaluation and prediction in any case."""

    def of(self, table: str) -> tuple[str, TableSharding]:
        """The place in the configuration that names the sharding of ``table``, and the sharding."""
        if table in self.tables:
            return f"sharding.tables.{table}", self.tables[table]
        for pattern, choice in self.tables.items():
            if fnmatchcase(table, pattern):
                return f"sharding.tables.{pattern}", choice
        return "sharding.default", TableSharding(type=self.default)
