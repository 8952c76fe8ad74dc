"""``training.compile``: the same training as in eager mode, compiled once, and what it needs."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.config.check import check_run
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.training.compiled import check_compiler
from tests import synthetic
from tests.processes import run_processes

STEPS = 8


def losses(rank: int, folder: Path, compiled: bool) -> tuple[list[list[float]], list[str]]:
    """Losses of the first steps, with dropout, micro-batches and a short last batch; names of the dense weights."""
    import torch
    import torch.distributed as dist

    from dlrm_mtl.core.processes import Process
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.training.build import build_model, build_optimizers, build_step
    from dlrm_mtl.training.loaders import make_loader

    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes
    process = Process(rank, dist.get_world_size(), torch.device("cpu"))
    dataset = open_dataset(str(folder))
    config = RunConfig.model_validate(
        synthetic.config(folder, training={"micro_batches": 2, "compile": compiled, "log_every": 1})
    )
    model = build_model(config, dataset.spec, process)
    optimizers = build_optimizers(config, model, STEPS)
    step = build_step(config, process, model, optimizers)
    loader = make_loader(config, dataset, "train", process)
    model.module.train()
    values: list[list[float]] = []
    try:
        for epoch in itertools.count():
            batches = loader.epoch(epoch, 0)
            while pair := list(itertools.islice(batches, 2)):
                parts, _ = step([*pair, *[loader.empty_batch()] * (2 - len(pair))], len(values), epoch)
                dist.all_reduce(parts)
                values.append(parts.tolist())
                if len(values) == 1 and compiled:
                    torch.compiler.set_stance("fail_on_recompile")
                if len(values) == STEPS:
                    return values, list(model.dense_weights())
    finally:
        torch.compiler.set_stance("default")
    raise AssertionError


WITHOUT_SPACE = pytest.mark.skipif(
    " " in sys.prefix, reason="PyTorch cannot compile where the environment's path has a space"
)


@WITHOUT_SPACE
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_training_is_the_same_and_compiled_once(tmp_path: Path) -> None:
    folder = synthetic.write_dataset(tmp_path, rows=420)
    wanted, names = run_processes(1, losses, folder, False)[0]
    results = run_processes(2, losses, folder, True, timeout=500.0)
    assert results[0] == results[1]
    np.testing.assert_allclose(results[0][0], wanted, rtol=1e-5)
    assert results[0][1] == names


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no C\+\+ compiler 'g\+\+' on this machine; install g\+\+, .* leave the key out"
    ):
        check_compiler()


@WITHOUT_SPACE
def test_a_space_in_the_folder_of_compiled_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    check_compiler()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "my cache"))
    with pytest.raises(
        UserError, match=r"a space in .*my cache.* let the environment variable TORCHINDUCTOR_CACHE_DIR"
    ):
        check_compiler()


def test_not_with_gradient_balancing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training": {"compile": True}, "balancing": {"name": "pcgrad"}}
    config = RunConfig.model_validate(synthetic.config(tmp_path, **changes))
    with pytest.raises(UserError, match=r"training.compile: .* balancing.name pcgrad needs to once for each task"):
        check_run(config, "run.yaml")
