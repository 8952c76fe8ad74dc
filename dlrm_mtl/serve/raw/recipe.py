"""From a data set's recipe and vocabularies to the description of its raw rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.raw_source import RECIPE_FILE, ColumnFacts, column_facts
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE, Values, read_values
from dlrm_mtl.prepare.table.description import FeatureConfig, HashConfig
from dlrm_mtl.prepare.table.recipe import Recipe, read_recipe
from dlrm_mtl.serve.raw.description import RawFeature, RawRows
from dlrm_mtl.serve.raw.lookup import arrange

WHOLE = r"^-?[0-9]+$"


def describe_raw(
    dataset: Dataset, spec: DatasetSpec, features: Sequence[FeatureSpec], columns: ColumnFacts | None = None
) -> tuple[RawRows, dict[str, Values]]:
    """Description of the raw rows of ``dataset``, and vocabularies by owner.

    With table.yaml, which `prepare table` writes, raw rows are those of the table. Otherwise they have the data set's
    columns, with values in place of ids for features with a vocabulary in vocabularies.parquet.

    Args:
        dataset: the data set.
        spec: its description in the run's contract.
        features: features that the model reads.
        columns: facts about the training files; default: read from them.

    Raises:
        UserError: the recipe is not that of the data that the run was trained on, or a file cannot be read.
    """
    recipe = read_recipe(dataset) if exists(dataset, RECIPE_FILE) else None
    vocabularies = _vocabularies(dataset, spec, features)
    columns = column_facts(dataset.split("train")) if columns is None else columns
    if recipe is None:
        described = [_stored(feature, spec, columns, vocabularies) for feature in features]
        return RawRows(features=described), vocabularies
    source = recipe.description.source
    described = [_of_table(feature, spec, columns, recipe, f"{dataset.path}/{RECIPE_FILE}") for feature in features]
    raw = RawRows(nulls=source.nulls, decimal=source.decimal, thousands=source.thousands, features=described)
    numbered = {feature.owner for feature in described if feature.values == "vocabulary"}
    nothing = Values("", pa.array([], pa.string()), np.empty(0, np.int64))
    return raw, {str(owner): vocabularies.get(str(owner), nothing) for owner in sorted(map(str, numbered))}


def arrange_all(raw: RawRows, vocabularies: Mapping[str, Values]) -> tuple[RawRows, dict[str, Tensor]]:
    """The description with the seeds of the lookups, and the tensors of all vocabularies."""
    seeds: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for owner, values in vocabularies.items():
        own, seeds[owner] = arrange(values.values, values.ids, owner)
        tensors |= own
    aligned = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # bytes last
    return raw.model_copy(update={"seeds": seeds}), dict(aligned)


def exists(dataset: Dataset, name: str) -> bool:
    """True if the data set's folder holds the file ``name``."""
    return dataset.filesystem.get_file_info(f"{dataset.path}/{name}").type == fs.FileType.File


def _vocabularies(dataset: Dataset, spec: DatasetSpec, features: Sequence[FeatureSpec]) -> dict[str, Values]:
    """Vocabularies of ``features`` in vocabularies.parquet, by owner."""
    if not exists(dataset, VOCABULARIES_FILE):
        return {}
    owners = sorted({spec.vocabulary_owner(feature.name) for feature in features if feature.kind != "dense"})
    path = f"{dataset.path}/{VOCABULARIES_FILE}"
    found = {owner: read_values(dataset.filesystem, path, owner) for owner in owners}
    return {owner: values for owner, values in found.items() if values is not None}


def _stored(
    feature: FeatureSpec, spec: DatasetSpec, columns: ColumnFacts, vocabularies: Mapping[str, Values]
) -> RawFeature:
    """A feature of a data set without a recipe."""
    made = RawFeature(name=feature.name, column=feature.source, kind=feature.kind, values="stored")
    owner = spec.vocabulary_owner(feature.name) if feature.kind != "dense" else ""
    if owner not in vocabularies:
        return made
    whole = bool(pc.all(pc.match_substring_regex(vocabularies[owner].values, WHOLE)).as_py())
    return made.model_copy(
        update={
            "values": "vocabulary",
            "owner": owner,
            "whole": whole,
            "listed": feature.source in columns.lists,
            "null": "null" if feature.source in columns.nulls else "zero",
        }
    )


def _of_table(feature: FeatureSpec, spec: DatasetSpec, columns: ColumnFacts, recipe: Recipe, place: str) -> RawFeature:
    """A feature of a data set that `prepare table` wrote."""
    configs = {config.name: config for config in recipe.description.used}
    config = configs.get(feature.source)
    if config is None or config.kind != feature.kind:
        raise _other(place, feature.name, "kind", feature.kind, config.kind if config else "not there")
    made = RawFeature(name=feature.name, column=config.source, kind=feature.kind, values="number")
    if feature.kind == "dense":
        _same(place, feature.name, "transform", feature.transform, config.number_transform)
        return made.model_copy(update={"fill": config.fill, "clip": config.clip, "transform": config.transform})
    name = config.vocabulary_of or config.name
    owner, spec_owner = configs[name], spec.feature(spec.vocabulary_owner(feature.name))
    _same(place, feature.name, "vocabulary", spec_owner.name, name)
    update: dict[str, object] = {
        "owner": name,
        "whole": config.name in recipe.whole_numbers,
        "listed": feature.source in columns.lists,
        "separator": config.separator,
        "brackets": config.brackets,
        "max_length": config.max_length,
    }
    return made.model_copy(update=update | _numbering(place, owner, spec_owner))


def _numbering(place: str, owner: FeatureConfig, spec: FeatureSpec) -> dict[str, object]:
    hashed = owner.vocabulary
    if not isinstance(hashed, HashConfig):
        return {"values": "vocabulary"}
    _same(place, owner.name, "size", spec.vocabulary_size, hashed.size)
    _same(place, owner.name, "fingerprint", spec.fingerprint, f"hash, seed {hashed.seed}")
    return {"values": "hash", "size": hashed.size, "seed": hashed.seed}


def _same(place: str, feature: str, what: str, trained: object, found: object) -> None:
    if trained != found:
        raise _other(place, feature, what, trained, found)


def _other(place: str, feature: str, what: str, trained: object, found: object) -> UserError:
    return UserError(
        f"{place}: {what} of feature {feature!r} is {found!r}, and was {trained!r} when the run was trained; put the file back "
        "that the data set was prepared with."
    )
