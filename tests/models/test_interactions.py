"""Interactions against literal, loop-written versions of their equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dlrm_mtl.models.interactions import build_interaction
from dlrm_mtl.models.interactions.concat import ConcatConfig
from dlrm_mtl.models.interactions.dcnv2 import DCNv2Config
from dlrm_mtl.models.interactions.dot import DotConfig
from dlrm_mtl.models.interactions.fm import FMConfig


@pytest.mark.parametrize("keep", ["dense", "all"])
@pytest.mark.parametrize("dense", [0, 3])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_dot(keep: str, dense: int, rows: int) -> None:
    dot = build_interaction(DotConfig(keep=keep), [3] * 4, dense)
    x = torch.randn(rows, 12 + dense)
    vectors = x.split(3, dim=1)
    kept = x if keep == "all" else x[:, 12:]
    expected = torch.cat([kept, *((a * b).sum(1, keepdim=True) for a, b in itertools.combinations(vectors, 2))], dim=1)
    assert expected.shape[1] == dot.out_features
    torch.testing.assert_close(dot(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", ["sum", "none"])
@pytest.mark.parametrize("dense", [0, 2, 3])
def test_fm(pooling: str, dense: int) -> None:
    fm = build_interaction(FMConfig(pooling=pooling), [3] * 4, dense)
    x = torch.randn(5, 12 + dense)
    vectors = list(x[:, :12].split(3, dim=1)) + ([x[:, 12:]] if dense == 3 else [])
    crossed: Tensor = sum(a * b for a, b in itertools.combinations(vectors, 2))
    expected = torch.cat([x, crossed.sum(1, keepdim=True) if pooling == "sum" else crossed], dim=1)
    assert expected.shape[1] == fm.out_features
    torch.testing.assert_close(fm(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_dcnv2(rank: int | None) -> None:
    cross = build_interaction(DCNv2Config(layers=2, rank=rank), [3, 2], 1)
    x = torch.randn(5, 6)
    assert cross.out_features == 6
    assert cross(x).shape == (5, 6)
    assert build_interaction(ConcatConfig(), [3, 2], 1)(x) is x


@pytest.mark.parametrize(
    ("config", "fields", "dense", "sentence"),
    [
        (DotConfig(), [4, 8], 0, "dot needs pooled features of one width and finds 4, 8"),
        (FMConfig(), [], 3, "fm needs pooled features of one width and finds none"),
        (DotConfig(), [4, 4], 3, "let model.dense.layers end in 4"),
        (DotConfig(), [4], 0, "dot needs two features or more"),
    ],
)
def test_widths_that_do_not_fit(config: DotConfig | FMConfig, fields: list[int], dense: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_interaction(config, fields, dense)


def test_cross_layers_are_those_of_torchrec() -> None:
    """The same initial weights from the same generator, the same names, and the same result to the bit."""
    from torchrec.modules import crossnet

    from dlrm_mtl.models.interactions.dcnv2 import CrossNet, LowRankCrossNet

    for own, theirs in (
        (lambda: CrossNet(12, 2), lambda: crossnet.CrossNet(12, 2)),
        (lambda: LowRankCrossNet(12, 2, 3), lambda: crossnet.LowRankCrossNet(12, 2, 3)),
    ):
        torch.manual_seed(5)
        found = own()
        torch.manual_seed(5)
        wanted = theirs()
        assert list(found.state_dict()) == list(wanted.state_dict())
        x = torch.randn(7, 12)
        assert torch.equal(found(x), wanted(x))
