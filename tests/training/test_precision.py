"""Number formats of two bytes: the dense part under autocast, and vectors on their way between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrm_mtl.embeddings.config import CommunicationConfig
from dlrm_mtl.embeddings.torchrec.communication import HalfCodec, codecs
from tests import synthetic
from tests.processes import run_processes
from tests.training.test_plan_invariance import first_losses

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mmoe": {"name": "mmoe", "experts": 2, "layers": [8]},
    "adatt": {"name": "adatt", "task_experts": 1, "shared_experts": 1, "levels": [[8]]},
    "aitm": {"name": "aitm", "layers": [8]},
}
BOUND = 1e-2
"""Largest relative difference of the losses of the first 20 steps: bfloat16 holds 8 bits."""
TYPES = {2: ["table_wise", "row_wise", "column_wise", "table_column_wise"], 4: ["table_row_wise", "grid_shard"]}
FORMATS = ("fp16", "bf16")
FIRST, LAST = 5e-5, 8e-3
"""Largest relative difference of the losses in the first four steps, and in all 20: what is rounded is learned on."""
UNPOOLED = {"embeddings": {"dim": 8, "features": {"history": {"pooling": "flattened", "length": 3}}}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"))


def with_autocast(rank: int, folder: Path) -> dict[str, list[list[list[float]]]]:
    """Losses in float32 and under autocast, by architecture."""
    found = {}
    for name, multitask in ARCHITECTURES.items():
        model = {"embeddings": {"dim": 8}, "multitask": multitask, "tower": {"layers": [8]}}
        found[name] = [
            first_losses(rank, folder, model=model, training={"autocast": value}) for value in (None, "bfloat16")
        ]
    return found


def test_autocast_rounds_losses_and_no_more(dataset: Path) -> None:
    (one,), two = run_processes(1, with_autocast, dataset), run_processes(2, with_autocast, dataset)[0]
    for name in ARCHITECTURES:
        whole, half = map(np.array, one[name])
        assert (whole != half).any(), f"{name}: it is used"
        np.testing.assert_allclose(half, whole, rtol=BOUND, err_msg=name)
        np.testing.assert_allclose(two[name][1], half, rtol=BOUND, err_msg=f"{name} on two processes")


def state_after_autocast(rank: int, folder: Path) -> set[torch.dtype]:
    """Number formats of all weights and of the logits in training and evaluation."""
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model
    from dlrm_mtl.training.loaders import make_loader

    process = Process(0, 1, torch.device("cpu"))
    config = RunConfig.model_validate(synthetic.config(folder, training={"autocast": "bfloat16"}))
    dataset = open_dataset(str(folder))
    model = build_model(config, dataset.spec, process)
    with make_loader(config, dataset, "train", process).epoch(0) as batches:
        batch = next(batches)
    logits = model.module(batch)
    logits.sum().backward()
    gradients = [parameter.grad for parameter in model.dense_parameters().values() if parameter.grad is not None]
    model.module.eval()
    plain = model.module(batch)
    model.ranker.autocast = None
    assert torch.equal(plain, model.module(batch)), "evaluations are in float32"
    return {tensor.dtype for tensor in (logits, *gradients, *model.dense_weights().values())}


def test_what_is_kept_stays_float32(dataset: Path) -> None:
    assert run_processes(1, state_after_autocast, dataset) == [{torch.float32}]


def communicated(rank: int, folder: Path, world_size: int) -> dict[tuple[str, str], tuple[list[list[float]], int]]:
    """Losses, and the bytes of vectors and gradients that this process sent, by sharding type and format."""
    import torch.distributed as dist

    sent = [0]
    found = {}
    exchange = dist.all_to_all_single

    def counted(output: torch.Tensor, input: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if input.is_floating_point():
            sent[0] += input.numel() * input.element_size()
        return exchange(output, input, *rest, **options)

    dist.all_to_all_single = counted
    for kind in TYPES[world_size]:
        for form in ("fp32", *FORMATS):
            sharding = {"default": kind, "communication": {"forward": form, "backward": form}}
            if world_size == 4:
                sharding["processes_per_host"] = 2
            changes = {"model": UNPOOLED} if kind in ("table_wise", "row_wise") else {}
            sent[0] = 0
            found[kind, form] = (first_losses(rank, folder, sharding=sharding, **changes), sent[0])
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_vectors_travel_in_half_the_bytes(dataset: Path, world_size: int) -> None:
    found = run_processes(world_size, communicated, dataset, world_size)[0]
    for kind in TYPES[world_size]:
        whole, whole_bytes = found[kind, "fp32"]
        for form in FORMATS:
            half, half_bytes = found[kind, form]
            assert half != whole, f"{kind}, {form}: it is used"
            np.testing.assert_allclose(half[:4], whole[:4], rtol=FIRST, err_msg=f"{kind}, {form}, first steps")
            np.testing.assert_allclose(half, whole, rtol=LAST, err_msg=f"{kind}, {form}")
            assert half_bytes * 2 == whole_bytes, f"{kind}, {form}"
    assert found[TYPES[world_size][0], "fp32"][1] > 0


def test_gradients_are_scaled_exactly_and_what_is_not_finite_stays_so() -> None:
    registry = codecs(CommunicationConfig(backward="fp16"), batch_size=48000)
    assert registry is not None
    (pair,) = {id(pair): pair for pair in registry.values()}.values()
    codec = pair.backward
    assert isinstance(codec, HalfCodec)
    assert codec.scale == 65536
    small = torch.tensor([3e-8, -2.5e-9, 0.0])
    torch.testing.assert_close(codec.decode(codec.encode(small)), small, rtol=1e-3, atol=0.0)
    bad = codec.decode(codec.encode(torch.tensor([float("inf"), float("nan"), 10.0])))
    assert not bad.isfinite().any(), "too large a gradient is not finite, so that the step is skipped"
    assert pair.forward.encode(small) is small
    assert codecs(CommunicationConfig(), 512) is None


def test_autocast_does_not_go_with_compile(dataset: Path) -> None:
    from dlrm_mtl.config.run import RunConfig

    with pytest.raises(ValueError, match="bfloat16 does not go with compile: true; remove one of them"):
        RunConfig.model_validate(synthetic.config(dataset, training={"autocast": "bfloat16", "compile": True}))
