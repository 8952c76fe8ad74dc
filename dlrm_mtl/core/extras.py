"""Optional packages: the extra of dlrm-mtl that installs each, and the sentence where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dlrm_mtl.core.errors import UserError

TESTED = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0", "torchx": "0.7.0"}
"""Releases that this package is tested with; a release with the same first two numbers serves as well."""

EXTRA_OF = {
    "duckdb": "prepare",
    "fbgemm_gpu": "tables",
    "jinja2": "reports",
    "kubernetes": "kubernetes",
    "matplotlib": "reports",
    "pyarrow": "reader",
    "pyre_extensions": "tables",
    "scipy": "reports",
    "tensorboard": "train",
    "tensordict": "tables",
    "torchmetrics": "tables",
    "torchrec": "tables",
    "torchx": "launch",
    "tqdm": "tables",
}
"""The extra that installs a package, by the name under which the package is imported."""

PAIR = ("torchrec", "fbgemm_gpu")
"""Packages that no extra for the CPU can install: pip would add the CUDA build of fbgemm to the CPU build (setup.cfg)."""


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed. It is both a user's mistake and an ImportError."""


def missing_extra(module: str) -> MissingExtraError | None:
    """Return the error for an optional package that is not installed.

    Args:
        module: full name of the module whose import failed, such as ``torchrec.distributed``.

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
    """Turn the failed import of an optional package into the sentence that names its extra.

    Raises:
        MissingExtraError: in place of a ModuleNotFoundError for a package in :data:`EXTRA_OF`. All other errors pass.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error.name or "")
        if missing is None:
            raise
        raise missing from error
