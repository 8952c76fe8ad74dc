"""Writing Ali-CCP's impressions, each with its user's common features, as splits on disk."""

from __future__ import annotations

import pyarrow as pa

from dlrm_mtl.prepare.aliccp.common_features import CommonFeatures
from dlrm_mtl.prepare.common.duck import SPLITS, SplitWriter, scratch, stream
from dlrm_mtl.prepare.common.preparation import Preparation, refuse_empty
from dlrm_mtl.prepare.common.vocabularies import Vocabularies, single


def write_impressions(
    preparation: Preparation,
    vocabularies: Vocabularies,
    conditions: dict[str, str],
    own: list[str],
    common: list[str],
    many: set[str],
) -> int:
    """Write every split and the vocabularies; returns the number of impressions without common features.

    Args:
        preparation: preparation whose database has the tables of :func:`~dlrm_mtl.prepare.aliccp.files.load`.
        vocabularies: vocabularies of all fields.
        conditions: SQL condition of each split's rows in its file.
        own: fields of impressions.
        common: fields of the users.
        many: fields that have several ids in some row.

    Raises:
        UserError: a split would be empty.
    """
    labels = {"sample": pa.int64(), "click": pa.int8(), "conversion": pa.int8()}
    ids = {f"field_{name}": pa.list_(pa.int32()) if name in many else pa.int32() for name in (*own, *common)}
    connection, progress = preparation.connection, preparation.progress
    counts, missing = {}, 0
    for position, split in enumerate(SPLITS):
        part = "test" if split == "test" else "train"
        if split != "validation":
            progress(f"common features of {part}", 0.7 + 0.08 * position)
            place = scratch(preparation.folder, f"common_{part}")
            users = CommonFeatures(connection, part, common, vocabularies, place)
        progress(f"writing {split}", 0.72 + 0.08 * position)
        with SplitWriter(preparation.folder / split, pa.schema({**labels, **ids})) as writer:
            for batch in stream(connection, f"SELECT * FROM skeleton_{part} WHERE {conditions[split]}"):
                rows = users.find(batch.column("common").to_numpy(False))
                lists = {name: vocabularies.encode(name, batch.column(name)) for name in own}
                lists |= {name: users.take(name, rows) for name in common}
                columns = {name: batch.column(name) for name in labels}
                columns |= {f"field_{name}": ids if name in many else single(ids) for name, ids in lists.items()}
                writer.write(pa.RecordBatch.from_pydict(columns))
        counts[split] = writer.rows
        missing, users.missing = missing + users.missing, 0
    refuse_empty(counts, "set --validation-share so that it and training have rows")
    vocabularies.write(preparation.folder / "vocabularies.parquet")
    return missing
