"""Optional packages: the extra of dlrm-mtl that installs each, and the error for a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dlrm_mtl.core.errors import UserError

TESTED = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0", "torchx": "0.7.0"}
"""Releases that this package is tested with; a release with the same first two numbers works as well."""

EXTRA_OF = {
    "duckdb": "prepare",
    "fbgemm_gpu": "tables",
    "httptools": "server",
    "jinja2": "reports",
    "kubernetes": "kubernetes",
    "matplotlib": "reports",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "optuna": "sweep",
    "prometheus_client": "server",
    "pyarrow": "reader",
    "pyre_extensions": "tables",
    "scipy": "reports",
    "starlette": "server",
    "tensorboard": "train",
    "tensordict": "tables",
    "torchmetrics": "tables",
    "torchrec": "tables",
    "torchx": "launch",
    "tqdm": "tables",
    "uvicorn": "server",
}
"""Extra that installs a package, by import name."""

PAIR = ("torchrec", "fbgemm_gpu")
"""Packages that no CPU extra can install: pip would add fbgemm's CUDA build to its CPU build (setup.cfg)."""


class MissingExtraError(UserError, ImportError):
    """A missing optional package: both a user's mistake and an ImportError."""


def missing_extra(module: str) -> MissingExtraError | None:
    """Return the error for an optional package that is not installed.

    Args:
        module: full name of the module that could not be imported, such as ``torchrec.distributed``.

    Returns:
        The error, whose message names the extra to install; None if no extra has this module.
    """
    root = module.partition(".")[0]
    if root not in EXTRA_OF:
        return None
    command = f'pip install "dlrm-mtl[{EXTRA_OF[root]}]"'
    if root in PAIR:
        torchrec, fbgemm = TESTED["torchrec"], TESTED["fbgemm-gpu"]
        command += (
            f" && pip install --no-deps torchrec=={torchrec} fbgemm-gpu-cpu=={fbgemm}"
            ' (with a CUDA GPU: pip install "dlrm-mtl[cuda]")'
        )
    return MissingExtraError(f"{root} is not installed: run {command}", local=False)


@contextmanager
def extras_named() -> Iterator[None]:
    """Turn the failed import of an optional package into an error that names its extra.

    Raises:
        MissingExtraError: instead of a ModuleNotFoundError for a package in :data:`EXTRA_OF`. All other errors pass.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error.name or "")
        if missing is None:
            raise
        raise missing from error
