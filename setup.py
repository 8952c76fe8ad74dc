"""Builds the native kernels of the sparse update and of lookups in serving; the metadata is in setup.cfg.

They are a plain shared library without a line of Python or PyTorch in it, so it is built without either's headers and fits
any version of both; one wheel serves every Python. Where there is no compiler, or it fails, the package is installed
without the library: the kernels in plain PyTorch serve instead, and dlrm_mtl/embeddings/kernels/_native.log tells
`dlrm-mtl doctor` why.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("dlrm_mtl/embeddings/kernels")
SOURCES = sorted(str(path) for path in (FOLDER / "csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in (FOLDER / "csrc").glob("*.h"))

# -ffp-contract=off: a fused multiply-add rounds once instead of twice, so each instruction set would give other bits.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
# Only these files, and functions with a target of their own, use more than the oldest processor has; what runs is decided when
# the library is loaded.
FLAGS_OF_FILE = {
    "initial_rows_avx2.cpp": ["-mavx2", "-mfma"],
    "row_kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "row_kernels_avx512.cpp": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mf16c"],
}

REASON = "the C++ compiler is missing or failed when the package was installed; get g++ 9 or newer and install it again"


class BuildNative(build_ext):
    """Compiles each file for its instruction set, and goes on without the library if that is not possible."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version: the library does not depend on it."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or write why not."""
        library = Path(self.get_ext_fullpath(ext.name))
        log = library.with_suffix(".log")
        library.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        try:
            self._build(ext, library)
        except Exception as error:
            library.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{REASON}\n\n{error}\n")
            print(
                f"warning: no native kernels, so slower ones in PyTorch will serve: {REASON}\n{error}", file=sys.stderr
            )

    def copy_extensions_to_source(self) -> None:
        """What an editable install does with the library; here with the log as well, and without what is out of date."""
        for suffix in (".so", ".log"):
            built = Path(self.build_lib, FOLDER, "_native").with_suffix(suffix)
            here = (FOLDER / "_native").with_suffix(suffix)
            here.unlink(missing_ok=True)
            if built.exists():
                self.copy_file(str(built), str(here))

    def _build(self, ext: Extension, library: Path) -> None:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        # OpenMP without linking to its runtime: PyTorch has one loaded, and a second one would bring threads of its own.
        openmp = ["-fopenmp"] if sys.platform == "linux" else []
        objects: list[str] = []
        for source in ext.sources:
            extra = FLAGS_OF_FILE.get(Path(source).name, []) if x86 else []
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=FLAGS + openmp + extra, depends=HEADERS
            )
        self.compiler.link_shared_object(objects, str(library), target_lang="c++")


class PlatformWheel(bdist_wheel):
    """Names the wheel for its platform and for no version of Python: the library does not use Python's interface."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its binary interface and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    # Optional: without it, installing from a copy that could not be built would fail after all.
    ext_modules=[
        Extension("dlrm_mtl.embeddings.kernels._native", SOURCES, depends=HEADERS, language="c++", optional=True)
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
