"""Description of a run's model in a bundle, from the run's configuration and data set."""

from __future__ import annotations

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.models.input_sums import Sums
from dlrm_mtl.serve.bundle import ServedData, ServedModel
from dlrm_mtl.serve.raw.description import RawRows
from dlrm_mtl.tasks.targets import label_columns


def describe_model(
    config: RunConfig,
    spec: DatasetSpec,
    step: int,
    golden: Sums,
    raw: RawRows | None = None,
    tables: FormatName = "fp32",
) -> ServedModel:
    """Description of the model of a run.

    Args:
        config: configuration of the run, with all feature names.
        spec: description of its data set.
        step: step of the weights.
        golden: sums of the model's input on the golden rows.
        raw: description of raw rows; None if the bundle scores prepared rows only.
        tables: format of the tables.
    """
    chosen = select(spec, config.data, [])
    read = [feature.name for feature in (*chosen.sparse, *chosen.dense)]
    owners = [spec.vocabulary_owner(feature.name) for feature in chosen.sparse]
    labels = label_columns(config.tasks)
    data = config.data
    return ServedModel(
        name=config.name,
        step=step,
        plugins=config.plugins,
        dataset=spec.model_copy(
            update={
                "splits": {},
                "features": [feature for feature in spec.features if feature.name in (*read, *owners)],
                "labels": [label for label in spec.labels if label.name in labels],
            }
        ),
        data=ServedData(
            sparse=[feature.name for feature in chosen.sparse if feature.kind == "sparse"],
            sequence=[feature.name for feature in chosen.sparse if feature.kind == "sequence"],
            dense=[feature.name for feature in chosen.dense],
            max_sequence_length=data.max_sequence_length,
            dense_limit=data.dense_limit,
            out_of_range=data.out_of_range,
            unbounded=data.unbounded,
            train_only=data.train_only,
        ),
        tables=tables,
        tasks=config.tasks,
        model=config.model,
        raw=raw,
        score=config.serving.score,
        golden=golden,
    )
