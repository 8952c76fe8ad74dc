"""The dense update in C++: the bits of ``clippy_update``, whatever the threads and the instruction set."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.optim import clippy_native
from dlrm_mtl.optim.clippy import ClippyOptions, clippy_update, preset
from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad
from tests.optim import test_clippy_adagrad as forms

native = pytest.mark.skipif(cpu.native_status() is not None, reason=str(cpu.native_status()))


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if cpu.native_status() is None:
        cpu.isa("")


options = st.one_of(
    st.sampled_from([ClippyOptions(), preset("tfrs")]),
    st.builds(
        ClippyOptions,
        lambda_rel=st.sampled_from([0.0, 0.5]),
        lambda_abs=st.sampled_from([1e-2, 1e-40]),
        initial_accumulator_value=st.sampled_from([0.0, 0.1]),
        eps=st.sampled_from([0.0, 1e-3]),
        eps_inside=st.booleans(),
        accumulator_relative_threshold=st.sampled_from([0.0, 1e-2]),
    ),
    st.builds(
        ClippyOptions,
        accumulator=st.just("delayed"),
        clip_accumulator_update=st.booleans(),
        eps=st.sampled_from([0.0, 1e-3]),
    ),
)


@native
@settings(max_examples=40, deadline=None)
@given(
    rule=options,
    shapes=st.lists(st.sampled_from([(), (3,), (16,), (7, 5), (40, 50), (1, 16384), (20000,)]), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    lr=st.sampled_from([0.003, 0.3, 20.0]),
    size=st.sampled_from([1e-22, 1e-2, 1.0, 1e6]),
    isa=st.sampled_from(["portable", "avx2", ""]),
    threads=st.sampled_from([1, 3]),
)
def test_a_step_has_the_bits_of_the_rule(
    rule: ClippyOptions, shapes: list[tuple[int, ...]], seed: int, lr: float, size: float, isa: str, threads: int
) -> None:
    try:
        cpu.isa(isa)
    except ValueError:
        cpu.isa("portable")
    torch.set_num_threads(threads)
    numbers = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=numbers)) for shape in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases can never clip
        optimizer = ClippyAdagrad(parameters, lr, **rule.as_dict())
    for _ in range(2):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=numbers) * size
            parameter.grad = gradient * (torch.rand(parameter.shape, generator=numbers) > 0.2)
        wanted = [
            clippy_update(p.detach().clone(), p.grad, optimizer.state[p]["sum"].clone(), lr, rule) for p in parameters
        ]
        optimizer.step()
        for parameter, update, factor in zip(parameters, wanted, optimizer.clipping_factors().values(), strict=True):
            assert torch.equal(factor, update.factor)
            assert torch.equal(parameter.detach(), update.weight)
            assert torch.equal(optimizer.state[parameter]["sum"], update.accumulator)


@pytest.mark.parametrize("chosen", forms.OPTIONS.values(), ids=forms.OPTIONS.keys())
def test_the_fallback_follows_the_rule(chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRM_MTL_KERNELS", "reference")
    assert not clippy_native.available()
    forms.test_every_form_follows_the_rule(None, torch.float32, chosen)


def test_the_structure_is_that_of_the_library() -> None:
    header = Path(cpu.__file__).parent / "csrc" / "dense_clippy.h"
    body = re.search(r"struct DenseRule \{(.*?)\n\};", header.read_text(), re.DOTALL)
    assert body is not None
    fields = re.findall(r"^\s*(double|int64_t|float) (\w+);", body[1], re.MULTILINE)
    kinds = {"c_double": "double", "c_long": "int64_t", "c_float": "float"}
    assert fields == [(kinds[kind.__name__], name) for name, kind in clippy_native._DenseRule._fields_]
