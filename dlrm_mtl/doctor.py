"""Checks of the installed packages: one sentence per problem, with the remedy.

The usual problem: torchrec requires ``fbgemm-gpu``, the CUDA build, whose files are in the same folder as those of
``fbgemm-gpu-cpu``; or torch, torchrec and fbgemm come from different releases. Only package metadata is read, unless a
thorough check is requested, so this takes some milliseconds at the start of every training.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder, PackageNotFoundError, requires
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.extras import TESTED

PYTHON = (3, 10)
EXPECTED = TESTED
"""Releases that this package is tested with; a release with the same first two numbers works as well."""

_SHOWN = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow")
_LOAD = """
import torch, fbgemm_gpu, torchrec
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
assert torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2])).tolist() == [0, 1, 3]
"""


def needed(extra: str = "all") -> list[str]:
    """Return the names of the packages in this package's metadata, sorted.

    Args:
        extra: extra whose packages are added to those of the core.
    """
    try:
        lines = requires("dlrm-mtl") or []
    except PackageNotFoundError:  # run from a source tree that was never installed
        return []
    return sorted({name for name in _requirements(lines, {"", extra}) if name not in EXPECTED}, key=str.lower)


def problems(
    thorough: bool = False, path: Sequence[str] | None = None, has_gpu: bool | None = None, extra: str = "all"
) -> list[str]:
    """Return one sentence for each problem of the installed packages.

    Args:
        thorough: True to load fbgemm and torchrec as well, in a separate process because a broken pair can crash.
        path: folders of the installed packages; ``sys.path`` by default.
        has_gpu: True if this machine has a CUDA device to use; looked up by default.
        extra: extra of this package whose packages must be installed.
    """
    path = sys.path if path is None else path
    has_gpu = _has_gpu() if has_gpu is None else has_gpu
    found = _fbgemm(path, has_gpu)
    if sys.version_info < PYTHON:
        found.insert(0, f"Python {platform.python_version()} is too old: use Python 3.10 to 3.13.")
    for name in ("torch", "torchrec", "torchx") if extra == "all" else ("torch", "torchrec"):
        version, expected = _version(name, path), EXPECTED[name]
        command = f"pip install {'--no-deps ' if name == 'torchrec' else ''}{name}=={expected}"
        if version is None:
            found.append(f"{name} is not installed: run {command}")
        elif not _same_release(version, expected):
            found.append(f"{name} {version} is installed where {expected} is expected: run {command}")
    missing = [name for name in needed(extra) if _version(name, path) is None]
    if missing:
        found.append(f"{', '.join(missing)} not installed: run pip install {' '.join(missing)}")
    if thorough and not found:
        found = _load()
    return found


def hints(path: Sequence[str] | None = None, has_gpu: bool | None = None, usable: bool | None = None) -> list[str]:
    """Return one sentence for each unintended but working set-up: an unused GPU, or a CUDA build without a GPU.

    Args:
        path: folders of the installed packages; ``sys.path`` by default.
        has_gpu: True if the driver shows a CUDA device; looked up by default.
        usable: True if torch can use one; looked up by default.
    """
    path = sys.path if path is None else path
    has_gpu = _has_gpu() if has_gpu is None else has_gpu
    version = _version("torch", path)
    if version is None:
        return []
    if not _is_cuda_build(path):
        if not has_gpu:
            return []
        return [
            f"the driver shows a GPU, but torch {version} is a CPU build, so that everything runs on the CPU: for the GPU, "
            "install the CUDA set into a fresh environment (make setup BUILD=cuda in a clone, or pip install "
            '"dlrm-mtl[cuda]")'
        ]
    if not has_gpu:
        why = "CUDA_VISIBLE_DEVICES is empty" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "there is none"
        return [
            f"torch {version} is a CUDA build and sees no GPU ({why}), so that everything runs on the CPU: where a GPU is "
            "expected, check that nvidia-smi lists it, and that the container or job was given it (docker run --gpus all, "
            "--gpu of the launcher)"
        ]
    if not (_torch_sees_gpu() if usable is None else usable):
        return [
            f"the driver shows a GPU that torch {version} cannot use, so that everything runs on the CPU: compare the CUDA "
            "version that nvidia-smi names with that of torch, and update the driver"
        ]
    return []


def check_or_raise() -> None:
    """Check the packages that training needs; fast, and silent without problems.

    Raises:
        UserError: with one line per problem, or one for all packages that are not installed.
    """
    missing = [name for name in needed("train") if _version(name, sys.path) is None]
    no_pair = all(_version(name, sys.path) is None for name in ("torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"))
    if missing and no_pair:
        fitting = _fitting_fbgemm(sys.path, _has_gpu())
        raise UserError(
            f"training needs torchrec, fbgemm, {', '.join(missing)}, which are not installed: run pip install "
            f'"dlrm-mtl[train]" && pip install --no-deps torchrec=={EXPECTED["torchrec"]} '
            f"{fitting}=={EXPECTED['fbgemm-gpu']}"
        )
    if found := problems(extra="train"):
        raise UserError("\n".join(found))


def report() -> str:
    """Versions, devices and backends, one per line, for reports of problems."""
    rows = facts()
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def facts() -> list[tuple[str, str]]:
    """Names and values of :func:`report`."""
    rows = [("python", f"{platform.python_version()} ({sys.executable})"), ("platform", platform.platform())]
    rows += [(name, version or "not installed") for name, version in _versions(*_SHOWN, "torchx")]
    rows.append(("cores", str(len(os.sched_getaffinity(0)))))
    try:
        import torch
        from torch import distributed
    except (ImportError, OSError) as error:
        return [*rows, ("torch does not load", str(error))]
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    backends = [
        name
        for name, there in (
            ("gloo", distributed.is_available() and distributed.is_gloo_available()),
            ("nccl", distributed.is_available() and distributed.is_nccl_available()),
        )
        if there
    ]
    from dlrm_mtl.embeddings.kernels import cpu

    reason = cpu.native_status()
    return [
        *rows,
        ("table kernels, CPU", f"PyTorch (slow): {reason}" if reason else f"native, {cpu.isa()}"),
        ("CPU capability", torch.backends.cpu.get_cpu_capability()),
        ("CUDA of torch", torch.version.cuda or "none (CPU build)"),
        ("CUDA devices", ", ".join(devices) or "none"),
        ("backends", ", ".join(backends) or "none"),
    ]


def versions() -> dict[str, str]:
    """Versions that all processes of a job must share, by name."""
    found = {name: version for name, version in _versions("dlrm-mtl", *_SHOWN) if version}
    return {"python": platform.python_version(), **found}


def _versions(*names: str) -> list[tuple[str, str | None]]:
    return [(name, _version(name, sys.path)) for name in names]


def _fbgemm(path: Sequence[str], has_gpu: bool) -> list[str]:
    expected = EXPECTED["fbgemm-gpu"]
    cuda, cpu = _version("fbgemm-gpu", path), _version("fbgemm-gpu-cpu", path)
    torch = _version("torch", path)
    cuda_torch = torch is not None and _is_cuda_build(path)
    fitting = _fitting_fbgemm(path, has_gpu)
    install = f"pip install --no-deps {fitting}=={expected}"
    if cuda and cpu:
        return [
            f"fbgemm-gpu {cuda} and fbgemm-gpu-cpu {cpu} are both installed and have overwritten each other's files: "
            f"run pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && {install}"
        ]
    name, version = ("fbgemm-gpu", cuda) if cuda else ("fbgemm-gpu-cpu", cpu)
    if version is None:
        return [f"fbgemm is not installed (pip cannot choose between its CPU and CUDA builds): run {install}"]
    if not _same_release(version, expected):
        return [
            f"{name} {version} is installed where {expected} is expected: run pip install --no-deps {name}=={expected}"
        ]
    if torch and cuda and not cuda_torch:
        return [
            f"torch {torch} is a CPU build but fbgemm-gpu {cuda} needs CUDA: "
            f"run pip uninstall -y fbgemm-gpu && pip install --no-deps fbgemm-gpu-cpu=={expected}"
        ]
    if cpu and cuda_torch and has_gpu:
        return [
            f"torch {torch} uses this machine's GPU but fbgemm-gpu-cpu {cpu} cannot: "
            f"run pip uninstall -y fbgemm-gpu-cpu && {install}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        ]
    return []


def _fitting_fbgemm(path: Sequence[str], has_gpu: bool) -> str:
    return "fbgemm-gpu" if has_gpu and _is_cuda_build(path) else "fbgemm-gpu-cpu"


def _load() -> list[str]:
    done = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [
        f"torch, fbgemm and torchrec are installed but do not load together ({reason}): "
        "run make setup in a fresh clone, or remove the virtual environment and install anew"
    ]


def _requirements(lines: Sequence[str], extras: set[str]) -> Iterator[str]:
    """Yield the names in lines such as ``pyarrow>=20; extra == "reader"``, also through this package's own extras."""
    for line in lines:
        requirement, _, marker = line.partition(";")
        of_extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if (of_extra.group(1) if of_extra else "") not in extras:
            continue
        match = re.match(r"\s*([\w.-]+)\s*(?:\[([^]]*)\])?", requirement)
        if match is None:
            continue
        name, of_name = match.groups()
        if name == "dlrm-mtl":
            yield from _requirements(lines, {extra.strip() for extra in of_name.split(",")})
        else:
            yield name


def _distribution(name: str, path: Sequence[str]) -> Distribution | None:
    context = DistributionFinder.Context(name=name, path=list(path))
    return next(iter(MetadataPathFinder.find_distributions(context)), None)


def _version(name: str, path: Sequence[str]) -> str | None:
    distribution = _distribution(name, path)
    return distribution.version if distribution else None


def _is_cuda_build(path: Sequence[str]) -> bool:
    # The version says "+cpu" or "+cu130" or nothing, depending on the index; the file always tells.
    distribution = _distribution("torch", path)
    file = Path(str(distribution.locate_file("torch/version.py"))) if distribution else None
    text = file.read_text() if file and file.is_file() else ""
    return re.search(r"^cuda\b.*= *['\"]", text, re.MULTILINE) is not None


def _same_release(version: str, expected: str) -> bool:
    return version.split("+")[0].split(".")[:2] == expected.split(".")[:2]


def _torch_sees_gpu() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return True  # which is a problem of its own
    return torch.cuda.is_available()


def _has_gpu() -> bool:
    devices = [*glob.glob("/dev/nvidia[0-9]*"), *glob.glob("/dev/dxg")]
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and bool(devices)
