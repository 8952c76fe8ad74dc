"""The ``data`` part of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.data.negatives.config import NegativesConfig


class UnboundedConfig(Strict):
    """How ids that are not numbered share the rows of a table: a new id takes a free row, or evicts another one."""

    rows: int = Field(gt=1)
    """Rows of the table. The first one is for id 0 and for ids without a row of their own."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Which id goes when there is no free row: the least recently used one (`lru`), the one that was in the fewest batches
    (`lfu`), or the one with the smallest number of batches divided by the steps since its last one (`distance_lfu`)."""

    @model_validator(mode="before")
    @classmethod
    def _number_of_rows(cls, value: Any) -> Any:
        return {"rows": value} if isinstance(value, int) else value


class DataConfig(Strict):
    """Which rows and columns a run reads, and in which order."""

    path: str
    """Folder of a data set: it holds dataset.yaml and one folder of Parquet files per split."""
    batch_size: int = Field(default=1024, gt=0)
    """Rows of a global batch, over all processes; a multiple of `lanes`."""
    evaluation_batch_size: int = Field(default=8192, gt=0)
    """Rows of a global batch in evaluation; a multiple of `lanes`."""
    lanes: int = Field(default=8, gt=0)
    """Number of lanes an epoch's rows are cut into; the world size must divide it. Another number gives another order."""
    shuffle: bool = True
    """Permute the rows of every block, and the blocks of every lane, anew each epoch; false keeps each lane in file order."""
    block_rows: int = Field(default=65536, gt=0)
    """Rows of a block: the unit that is read and permuted. 1 + `read_ahead` blocks per lane are in memory at a time."""
    sparse: list[str] | None = None
    """Names of the sparse features to use; default: all of the data set's."""
    sequence: list[str] | None = None
    """Names of the sequence features to use; default: all of the data set's."""
    dense: list[str] | None = None
    """Names of the dense features to use; default: all of the data set's."""
    max_sequence_length: int = Field(default=50, gt=0)
    """Longer lists of sequence features keep their last entries, the most recent ones."""
    dense_limit: float | None = Field(default=None, gt=0)
    """Standardised dense values beyond plus or minus this are cut off; default: they are left as they are."""
    out_of_range: Literal["error", "unknown"] = "error"
    """An id outside its vocabulary: stop with an error, or read it as id 0 (unknown) and count it."""
    unbounded: dict[str, UnboundedConfig] = Field(default_factory=dict)
    """Features whose ids are any integers of 64 bits, and the rows of their tables, by the name of the feature that owns the
    vocabulary: `user: 1000000`, or `user: {rows: 1000000, eviction: lru}`. Rows are given to ids as they come."""
    weight: str | None = None
    """Name of a float column with the weight of each row; default: every row weighs 1."""
    negatives: NegativesConfig | None = None
    """Draw rows with other items while training, for data of observed rows only; default: none. Evaluation draws nothing."""
    prefetch: int = Field(default=4, ge=1)
    """Batches that are prepared ahead of training."""
    read_ahead: int = Field(default=1, ge=0)
    """Blocks of every lane that are read before they are needed, while training goes on with the ones before them; 0 saves
    their memory."""
    read_threads: int = Field(default=2, ge=1)
    """Threads of every process that read and permute blocks."""
    growing: bool = False
    """New Parquet files arrive in the training split's folder, named in the order of their use. Training takes all that are
    there, each once, then the ones that came meanwhile, and ends; with `--resume` it goes on with files that are new."""

    @property
    def training_rows(self) -> int:
        """Rows of a global batch in training, drawn ones included."""
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
