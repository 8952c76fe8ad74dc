"""The public face: these names stay, importing the package costs nothing, and docs and examples need no other name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import yaml

import dlrm_mtl

HEAVY = {"torch", "torchrec", "fbgemm_gpu", "duckdb", "pyarrow", "matplotlib", "pydantic", "numpy"}


def test_every_name_is_there() -> None:
    for name in dlrm_mtl.__all__:
        assert getattr(dlrm_mtl, name) is not None
    assert dir(dlrm_mtl) == sorted(dlrm_mtl.__all__)
    assert not hasattr(dlrm_mtl, "nothing_of_that_name")


def test_type_checkers_see_the_same_names() -> None:
    """A name has the same import for type checkers and at run time."""
    tree = ast.parse(Path(dlrm_mtl.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {}
    for module, names in dlrm_mtl._MODULES.items():
        for entry in names.split():
            attribute, _, public = entry.partition(":")
            found[public or attribute] = (f"dlrm_mtl.{module}", attribute)
    assert seen == found
    assert sorted([*found, "__version__"]) == sorted(dlrm_mtl.__all__)


def loaded(code: str) -> set[str]:
    """The heavy packages that ``code`` has imported."""
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} & HEAVY


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded("import dlrm_mtl; dlrm_mtl.__version__; dir(dlrm_mtl)") == set()


def test_a_dense_optimizer_needs_torch_only() -> None:
    assert loaded("from dlrm_mtl import ClippyAdagrad, ClippyOptions, clippy_preset") <= {"torch", "numpy"}


def test_names_are_promised_ones() -> None:
    """A name that goes away, or comes, is a decision: change this list with it."""
    assert sorted(dlrm_mtl.__all__) == (Path(__file__).parent / "public_names.txt").read_text().split()


def test_one_version_number(repository: Path) -> None:
    cited = yaml.safe_load((repository / "CITATION.cff").read_text())["version"]
    assert str(cited) == dlrm_mtl.__version__, (
        f"CITATION.cff has version {cited}, dlrm_mtl/__init__.py {dlrm_mtl.__version__}"
    )
    assert "version = attr: dlrm_mtl.__version__" in (repository / "setup.cfg").read_text()
