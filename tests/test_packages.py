"""The package installed into environments that have only some of the others.

The environments are made of links into this environment's packages, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml

STEP = """
import sys
import torch
from dlrm_mtl import ClippyAdagrad

model = torch.nn.Linear(3, 1)
optimizer = ClippyAdagrad(model.parameters(), lr=0.1)
before = model.weight.detach().clone()
model(torch.ones(2, 3)).sum().backward()
optimizer.step()
assert not torch.equal(before, model.weight)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "pydantic", "torchrec", "yaml"}))
"""


def requirements_of(names: Iterable[str]) -> list[Distribution]:
    """The installed distributions with these names, and all that they need without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # needed on other systems, or by older Pythons
            continue
        for line in found[name].requires or []:
            if "extra ==" not in line:
                waiting.append(re.split(r"[^\w.-]", line)[0])
    return list(found.values())


class Environment:
    """A virtual environment of its own.

    Args:
        folder: where it is made.
        wheel: this package's wheel, which is installed.
        packages: the names of the packages that it has, beside what they need.
    """

    def __init__(self, folder: Path, wheel: Path, packages: Iterable[str]) -> None:
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for package in requirements_of(packages):
            for top in {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                source = Path(str(package.locate_file(top)))
                if source.exists() and not (site / top).exists():
                    (site / top).symlink_to(source)
        install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *install], check=True)

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in the folder ``cwd``."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment["OMP_NUM_THREADS"] = "1"
        line = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def build_wheel(folder: Path, repository: Path, *, native: bool) -> Path:
    """Build this package's wheel into ``folder``, with the native kernels or, much faster, without them."""
    source = folder / "source"
    source.mkdir()
    for name in ("dlrm_mtl", "setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).symlink_to(repository / name)
    environment = {**os.environ} if native else {**os.environ, "CC": "false", "CXX": "false"}
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), Path(__file__).parents[1], native=False)


def test_the_optimizer_imports_torch_only(tmp_path: Path, repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", STEP], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"numpy"}  # which torch imports where it is installed


@pytest.mark.slow
def test_the_optimizer_needs_torch_only(wheel: Path, tmp_path: Path) -> None:
    done = Environment(tmp_path / "venv", wheel, ["torch"]).run("python", "-c", STEP, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


@pytest.mark.slow
def test_the_core_names_the_extra_that_a_command_needs(wheel: Path, tmp_path: Path, repository: Path) -> None:
    core = ["torch", "numpy", "pydantic", "PyYAML", "rich", "typer", "typing-extensions"]
    environment = Environment(tmp_path / "venv", wheel, core)
    done = environment.run("dlrm-mtl", "train", "configs/kuairand_mmoe_debug.yaml", cwd=repository)
    assert done.returncode == 2
    assert done.stderr == (
        "error: training needs torchrec, fbgemm, pyarrow, pyre-extensions, tensorboard, tensordict, torchmetrics, tqdm, which "
        'are not installed: run pip install "dlrm-mtl[train]" && pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0\n'
    )
    done = environment.run("dlrm-mtl", "prepare", "table", "--infer", "clicks.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r'error: \w+ is not installed: run pip install "dlrm-mtl\[\w+\]"\n', done.stderr), done.stderr


@pytest.mark.slow
def test_a_wheel_with_native_kernels_trains(tmp_path: Path, repository: Path) -> None:
    wheel = build_wheel(tmp_path, repository, native=True)
    assert re.fullmatch(r"dlrm_mtl-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    train = ["torch", "numpy", "pydantic", "PyYAML", "rich", "typer", "typing-extensions"]
    train += ["pyarrow", "pyre-extensions", "tensorboard", "tensordict", "torchmetrics", "tqdm"]
    fbgemm = next(name for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if requirements_of([name]))
    environment = Environment(tmp_path / "venv", wheel, [*train, "torchrec", fbgemm])
    done = environment.run("dlrm-mtl", "doctor", cwd=repository)
    assert re.search(r"table kernels, CPU +native, ", done.stdout), done.stdout
    run = tmp_path / "run"
    configuration = "configs/kuairand_mmoe_debug.yaml"
    done = environment.run("dlrm-mtl", "train", configuration, "--output", str(run), cwd=repository)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["name"]
