"""The ``data`` part of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.core.uri_secrets import refuse_secrets
from dlrm_mtl.data.negatives.config import NegativesConfig


class UnboundedConfig(Strict):
    """Rules by which unbounded ids share the rows of a table: a new id takes a free row, or evicts another id."""

    rows: int = Field(gt=1)
    """Number of rows of the table. Row 0 is for id 0 and for ids without a row of their own."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Id to evict when no row is free: the least recently used (`lru`), the one seen in the fewest batches (`lfu`), or the
    one with the smallest number of batches divided by the steps since its last one (`distance_lfu`)."""

    @model_validator(mode="before")
    @classmethod
    def _number_of_rows(cls, value: Any) -> Any:
        return {"rows": value} if isinstance(value, int) else value


class DataConfig(Strict):
    """Rows and columns that a run reads, and their order."""

    path: str
    """Folder of a data set, with dataset.yaml and one folder of Parquet files per split."""
    batch_size: int = Field(default=1024, gt=0)
    """Rows of a global batch, over all processes; a multiple of `lanes`."""
    evaluation_batch_size: int = Field(default=8192, gt=0)
    """Rows of a global batch in evaluation, over all processes; a multiple of `lanes`."""
    lanes: int = Field(default=8, gt=0)
    """Number of lanes that an epoch's rows are cut into; the world size must divide it. Another number gives another order."""
    shuffle: bool = True
    """Permute the rows of every block and the blocks of every lane in each epoch; false keeps each lane in file order."""
    block_rows: int = Field(default=65536, gt=0)
    """Rows of a block, the unit that is read and permuted. 1 + `read_ahead` blocks per lane are in memory at a time."""
    sparse: list[str] | None = None
    """Names of the sparse features to use; default: all in the data set."""
    sequence: list[str] | None = None
    """Names of the sequence features to use; default: all in the data set."""
    dense: list[str] | None = None
    """Names of the dense features to use; default: all in the data set."""
    max_sequence_length: int = Field(default=50, gt=0)
    """Number of ids that longer lists of sequence features are cut to; the last, most recent ones are kept."""
    dense_limit: float | None = Field(default=None, gt=0)
    """Limit to which standardised dense values are clipped, positive and negative; default: no clipping."""
    out_of_range: Literal["error", "unknown"] = "error"
    """Handling of an id outside its vocabulary: stop with an error, or read it as id 0 (unknown) and count it."""
    unbounded: dict[str, UnboundedConfig] = Field(default_factory=dict)
    """Features whose ids are any 64-bit integers, and the rows of their tables, by the name of the feature that owns the
    vocabulary: `user: 1000000`, or `user: {rows: 1000000, eviction: lru}`. An id gets a row when it first occurs."""
    train_only: dict[str, int | float | None] = Field(default_factory=dict)
    """Features that are known in training only, such as the position on the page, and the constant that evaluation,
    prediction and serving read in place of their column: an id or a number as in the column, or null for no value."""
    weight: str | None = None
    """Name of a float column with the weight of each row; default: every row has weight 1."""
    negatives: NegativesConfig | None = None
    """Rows with other items to draw in training, for data of observed rows only; default: none. Evaluation draws none."""
    prefetch: int = Field(default=4, ge=1)
    """Number of batches prepared ahead of training."""
    read_ahead: int = Field(default=1, ge=0)
    """Blocks of every lane that are read in advance while training uses earlier ones; 0 saves their memory."""
    read_threads: int = Field(default=2, ge=1)
    """Threads of every process that read and permute blocks."""
    growing: bool = False
    """True if new Parquet files arrive in the training split's folder, named in the order of their use. Training uses every
    present file once, then the files that arrived meanwhile, and ends; `--resume` continues with new files."""

    @field_validator("path")
    @classmethod
    def _without_secret(cls, path: str) -> str:
        try:
            refuse_secrets(path)
        except UserError as error:
            raise ValueError(str(error)) from None
        return path

    @property
    def training_rows(self) -> int:
        """Rows of a global batch in training, including drawn ones."""
        return self.batch_size * (1 + self.negatives.each if self.negatives else 1)

    @model_validator(mode="after")
    def _lanes_divide_batches(self) -> DataConfig:
        for key in ("batch_size", "evaluation_batch_size"):
            size = getattr(self, key)
            if size % self.lanes:
                below = size // self.lanes * self.lanes
                nearby = " or ".join(str(n) for n in (below, below + self.lanes) if n > 0)
                raise ValueError(f"{key} {size} is not a multiple of lanes ({self.lanes}); set it to {nearby}.")
        return self
