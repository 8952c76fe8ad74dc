"""The dense part of a model as code that torch.compile writes: ``training.compile``."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

import torch

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.models.base import RankingModel

KEY = "training.compile"


def compile_dense_part(model: RankingModel, device: torch.device) -> None:
    """Let training steps run everything after the lookup as compiled code; parameters keep their names.

    Every batch of a training has the same shape, the padded last one too, so it is compiled once.

    Raises:
        UserError: there is no C++ compiler, or a path holds a character that breaks its command line.
    """
    if device.type == "cpu":
        check_compiler()
    model.compiled = torch.compile(model.logits_of, dynamic=False)


def check_compiler() -> None:
    """Raise :class:`UserError` if PyTorch could not compile code for the CPU here."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise UserError(
            f"{KEY}: there is no C++ compiler {compiler!r} on this machine; install g++, name another one in the environment "
            "variable CXX, or leave the key out."
        )
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    for folder in (str(Path(torch.__file__).parent), sysconfig.get_path("include")):
        if " " in folder:
            raise UserError(
                f"{KEY}: a space in {folder!r} breaks the compiler's command line; start Python through a link to its "
                "environment that has no space in its path, or leave the key out."
            )
    if " " in cache:
        raise UserError(
            f"{KEY}: a space in {cache!r}, where PyTorch keeps compiled code, breaks the compiler's command line; let the "
            "environment variable TORCHINDUCTOR_CACHE_DIR name a folder without one, or leave the key out."
        )
