"""Every file of a checkpoint, damaged in every way: found, in one sentence that names it and the newest good checkpoint."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.storage.run_store import LocalStore
from tests import commands
from tests.damage import DAMAGE, flip
from tests.golden import record

STEPS = (1, 2)
FILES = ("progress.json", "index.json", "rank_00000_0.safetensors")


class Tensors:
    """Two tensors of a model."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.matrix, self.vector = torch.randn(3000, 16, generator=generator), torch.randn(7, generator=generator)

    def prepare_load(self) -> None: ...

    def tensors(self) -> dict[str, Any]:
        return {"tables": {"item": self.matrix}, "dense": {"bias": self.vector}}

    def loaded(self, state: RunState) -> None: ...


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, ``a`` and ``b``, with a checkpoint after steps 1 and 2 each."""
    folder = tmp_path_factory.mktemp("runs")
    with process_group():
        for number, name in enumerate(("a", "b")):
            for step in STEPS:
                Checkpoints(LocalStore(folder / name)).save(Tensors(10 * number + step), RunState(step=step))
    return folder


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step_{number:08d}"


EXCHANGED: dict[str, Callable[[Path, Path], object]] = {
    "of another step": lambda path, runs: path.write_bytes((step(runs / "a", 1) / path.name).read_bytes()),
    "of another run": lambda path, runs: path.write_bytes((step(runs / "b", 2) / path.name).read_bytes()),
}


def load(run: Path, name: str = "latest", fallback: bool = False) -> tuple[Tensors, RunState]:
    tensors = Tensors(99)
    with process_group():
        return tensors, Checkpoints(LocalStore(run)).load(name, tensors, fallback)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [*DAMAGE, *EXCHANGED])
def test_damage_is_found_and_named(runs: Path, tmp_path: Path, file: str, damage: str) -> None:
    run = shutil.copytree(runs / "a", tmp_path / "a")
    path = step(run, 2) / file
    DAMAGE[damage](path) if damage in DAMAGE else EXCHANGED[damage](path, runs)
    with pytest.raises(UserError) as raised:
        load(run)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert f"step_00000002/{file}: " in sentence
    assert "step_00000001" in sentence.partition("; ")[2]
    with process_group(), pytest.raises(UserError):
        Checkpoints(LocalStore(run)).verify("step_00000002")
    tensors, state = load(run, fallback=True)
    assert state.step == 1
    assert torch.equal(tensors.matrix, Tensors(1).matrix)
    assert step(run, 2).is_dir(), "what is damaged is kept"


def test_every_bit_counts(runs: Path, tmp_path: Path) -> None:
    """One bit flipped somewhere in each kilobyte of the tensors' file: header, both tensors and their checksums."""
    run = shutil.copytree(runs / "a", tmp_path / "a")
    path = step(run, 2) / FILES[2]
    content = path.read_bytes()
    with process_group():
        for at in range(0, len(content), 997):
            flip(path, at)
            with pytest.raises(UserError):
                Checkpoints(LocalStore(run)).load("step_00000002", Tensors(99))
            path.write_bytes(content)
        Checkpoints(LocalStore(run)).load("step_00000002", Tensors(99))


def test_whole_checkpoints_exchanged(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "a", tmp_path / "a")
    shutil.rmtree(step(run, 2))
    shutil.copytree(step(run, 1), step(run, 2))
    with pytest.raises(UserError, match=r"progress\.json: is of step 1, not of this checkpoint"):
        load(run)
    shutil.rmtree(step(run, 2))
    shutil.copytree(step(runs / "b", 2), step(run, 2))
    with pytest.raises(UserError, match="is of another run"):
        load(run)


def test_pointers(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "a", tmp_path / "a")
    latest = run / "checkpoints" / "latest"
    for text in (str(step(runs / "b", 2)), "../../b/checkpoints/step_00000002", "..", "a/b"):
        latest.write_text(text)
        with pytest.raises(UserError, match="lies outside of this folder"):
            load(run)
    for broken in ("", "step_00000077", "nonsense"):
        latest.write_text(broken)
        assert load(run)[1].step == 2
    latest.unlink()
    assert load(run)[1].step == 2


def test_an_unknown_format(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "a", tmp_path / "a")
    path = step(run, 2) / "progress.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(UserError, match="has the format 3 and this version of dlrm-mtl reads 1 and 2; a newer version"):
        load(run)


class Command:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_nothing_is_executed(tmp_path: Path) -> None:
    """A command put in front of the pickle of an old checkpoint, or into its tensors."""
    mark = tmp_path / "executed"
    command = pickle.dumps(Command(mark))
    for name in (".metadata", "__0_0.distcp"):
        run = shutil.copytree(record.OLD_RUN, tmp_path / name)
        path = run / "checkpoints" / "step_00000020" / name
        path.write_bytes(command[:-1] + b"0" + path.read_bytes() if name == ".metadata" else command)
        done = commands.run("evaluate", run, "--checkpoint", "latest", cwd=record.ROOT)
        assert done.returncode == 2, done.stderr
        assert name in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not mark.exists()


def test_no_file_is_unpickled_but_by_the_unpickler_that_knows_data_only() -> None:
    package = Path(__file__).parents[2] / "dlrm_mtl"
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "FileSystemReader" not in text, path
        assert text.count("torch.load(") <= text.count("weights_only=True"), path
        if "pickle.Unpickler" in text:
            assert path.name == "format_1.py"
