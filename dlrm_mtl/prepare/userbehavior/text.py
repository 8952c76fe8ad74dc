"""Taobao UserBehavior: the texts of dataset.yaml."""

from __future__ import annotations

from dlrm_mtl.data.spec import DatasetSpec, LabelSpec
from dlrm_mtl.prepare.common.preparation import sparse_features, splits_in_folders
from dlrm_mtl.prepare.common.user_item import RowOptions
from dlrm_mtl.prepare.userbehavior import ehcf

LICENCE = "published by Alibaba for research; see https://tianchi.aliyun.com/dataset/649"
CITATION = """\
Han Zhu, Xiang Li, Pengye Zhang, Guozheng Li, Jie He, Han Li, Kun Gai. Learning Tree-based Deep Model for Recommender Systems. \
KDD 2018. https://doi.org/10.1145/3219819.3219826. Data: User Behavior Data from Taobao for Recommendation, Alibaba."""


def about(rows: str, layout: str, names: list[str], target: str, notes: list[str], options: RowOptions) -> str:
    """Text about the data set and its preparation."""
    source = ehcf.SOURCE if layout == "ehcf" else "Taobao UserBehavior, 2017-11-25 to 2017-12-03"
    row = "user-item pair: 1 where the behaviour occurred" if rows == "pairs" else "event: 1 for its behaviour"
    kind = "uniformly" if options.exponent == 0 else f"by popularity to the power {options.exponent:g}"
    limit = "" if options.known_negatives else ", never an item that the user had something to do with"
    drawn = (
        f"negatives per row: {options.negatives[0]} in training, {options.negatives[1]} in validation and test, drawn "
        f"{kind}{limit}"
    )
    return f"{source}. Labels {', '.join(names)} per {row}; target {target}; {'; '.join([*notes, drawn])}."


def specification(
    sizes: dict[str, int], names: list[str], splits: dict[str, str], about: str, categories: bool
) -> DatasetSpec:
    """Content of dataset.yaml, without statistics; ``splits`` describes each split, ``about`` the whole."""
    features = ["user", "item", "category"] if categories else ["user", "item"]
    return DatasetSpec(
        name="userbehavior",
        description=about,
        licence=LICENCE,
        citation=CITATION if categories else f"{CITATION} Subset and test pairs: {ehcf.CITATION}",
        splits=splits_in_folders(splits),
        features=sparse_features(sizes, features),
        labels=[LabelSpec(name=name) for name in names],
    )
