"""The ``model.embeddings`` and ``sharding`` parts of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict

Pooling = Literal["sum", "mean"]

ShardingType = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "auto",
]


class TableOverride(Strict):
    """Settings of one table that differ from the others."""

    dim: int | None = Field(default=None, gt=0, multiple_of=4)
    """Number of columns of the table; a multiple of 4."""
    pooling: Pooling | None = None
    """Combination of the rows of a bag into one vector."""
    init_std: float | None = Field(default=None, ge=0)
    """Standard deviation of the initial weights."""


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


class ShardingConfig(Strict):
    """Distribution of the tables over processes, hosts and devices. No choice here changes the trained model."""

    default: ShardingType = "auto"
    """Sharding type of tables without an entry in `tables`; `auto` leaves it to TorchRec's planner."""
    tables: dict[str, TableSharding] = Field(default_factory=dict)
    """Exceptions, by name of the table: `user_id: row_wise`, or `user_id: {type: column_wise, column_shards: 2}`."""
    processes_per_host: int | None = Field(default=None, gt=0)
    """Number of processes of one host for table_row_wise, table_column_wise and grid_shard. Default: the launcher's value
    (LOCAL_WORLD_SIZE). A smaller number divides one machine into several hosts."""
