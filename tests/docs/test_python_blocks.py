"""Every Python block of the documents runs as it stands, the blocks of a page one after the other, on a few KuaiRand rows.

A block that cannot be run has a comment on the line before it, ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

import dlrm_mtl
from tests.docs.pages import NAMES, ROOT, blocks
from tests.reports.folders import write_run

ROWS = {"train": 4000, "validation": 1000, "test": 1000}
ELSEWHERE = {
    "docs/extending.md": "tests/test_plugins.py trains with it, on two processes",
    "docs/other_programs.md": "tests/serve/test_other_programs_page.py runs it after the commands that it needs",
    "docs/server.md": "tests/serve/test_documentation.py runs it after docs/serving.md",
    "docs/serving.md": "tests/serve/test_documentation.py runs it after the commands that it needs",
}
PAGES = [page for page in NAMES if page not in ELSEWHERE and blocks(page, "python")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder like the repository's, with the first rows of the shipped data set."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(ROOT / "configs")
    shipped, small = ROOT / "datasets" / "kuairand_pure", folder / "datasets" / "kuairand_pure"
    small.mkdir(parents=True)
    shutil.copy(shipped / "dataset.yaml", small)
    for split, rows in ROWS.items():
        (small / split).mkdir()
        pq.write_table(pq.read_table(shipped / split).slice(0, rows), small / split / "part-0.parquet")
    return folder


@pytest.fixture
def run_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Executes the blocks of a page; gives the names that they define."""
    monkeypatch.chdir(folder)
    seed = torch.random.get_rng_state()

    def run(page: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(page, "python"):
            if block.not_run is None:
                code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec", dont_inherit=True)
                exec(code, names)  # a traceback shows the line of the page
        return names

    yield run
    torch.random.set_rng_state(seed)
    if dist.is_initialized():
        dist.destroy_process_group()


def metric(value: float) -> bool:
    return 0 < value < 1


def readme(names: dict[str, Any], said: str) -> None:
    assert metric(names["run"].metrics["is_click/auc"])
    assert names["scores"].num_rows == ROWS["test"]


def quickstart(names: dict[str, Any], said: str) -> None:
    assert metric(names["run"].metrics["is_click/auc"])
    assert names["scores"].column_names[:2] == ["user_id", "video_id"]
    assert "'user_id'" in said
    assert "'is_click'" in said
    assert Path("runs/quickstart/results.json").is_file()


def training(names: dict[str, Any], said: str) -> None:
    assert names["table"].num_rows == ROWS["test"]
    run, kept = dlrm_mtl.open_run("runs/mine"), sys.modules["mlflow"].told  # type: ignore[attr-defined]
    assert run.metrics == names["run"].metrics
    assert kept[1] == ("log_params", ({"seed": 1, "batch_size": 512},), {})
    assert [call[0] for call in (kept[0], kept[-1])] == ["start_run", "end_run"]
    assert kept[-1][1] == ("FINISHED",)
    logged = [key for name, arguments, _ in kept if name == "log_metrics" for key in arguments[0]]
    assert {"train/loss/is_click", "validation/is_click/auc", "test/is_click/auc"} <= set(logged)


def data(names: dict[str, Any], said: str) -> None:
    dataset = dlrm_mtl.open_dataset("shop")
    assert dataset.split("train").rows == 6
    assert dataset.split("test").rows == 2
    assert dataset.spec.vocabulary_size("clicked_before") == 4
    assert dataset.spec.feature("price").statistics.nulls == 1  # type: ignore[union-attr]


def negatives(names: dict[str, Any], said: str) -> None:
    assert "12 torch.Size([12, 2])" in said


def balancing(names: dict[str, Any], said: str) -> None:
    assert [tensor.shape for tensor in names["combined"]] == [torch.Size([100_000]), torch.Size([512])]


def clippy(names: dict[str, Any], said: str) -> None:
    assert isinstance(names["optimizer"].skipped_steps, torch.Tensor)


def reports(names: dict[str, Any], said: str) -> None:
    assert "'video_id': " in said
    runs = [write_run(Path(f"a{seed}"), seed=seed, auc=auc) for seed, auc in ((1, 0.72), (2, 0.74))]
    names["seeds"](runs, "click/auc")  # prints, see the test below


def two_phase(names: dict[str, Any], said: str) -> None:
    assert said.startswith("{'tables.user': ")
    assert said.endswith("} False\n")
    assert set(names["optimizer"].params) == {"tables.tables.user", "dense.head.weight", "dense.head.bias"}


def architectures(names: dict[str, Any], said: str) -> None:
    assert names["per_task"].shape == (32, 4, 128)


def tutorial(names: dict[str, Any], said: str) -> None:
    assert metric(names["mmoe"].metrics["is_click/auc"])
    assert metric(names["shared_bottom"].metrics["is_click/auc"])
    assert len(names["scores"]) == ROWS["test"]
    assert len(names["best"]) == 5


CHECKS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "README.md": readme,
    "docs/quickstart.md": quickstart,
    "docs/training.md": training,
    "docs/data.md": data,
    "docs/negatives.md": negatives,
    "docs/balancing.md": balancing,
    "docs/clippy.md": clippy,
    "docs/reports.md": reports,
    "docs/two_phase.md": two_phase,
    "docs/architectures.md": architectures,
    "docs/tutorial.ipynb": tutorial,
}
"""Results that a page's code must have, besides running."""


class MLflow(ModuleType):
    """Takes the place of MLflow: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.told: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: self.told.append((name, arguments, options))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", sorted(PAGES, key=lambda page: page == "docs/negatives.md"))  # after docs/data.md
def test_blocks_of_a_page_run(
    page: str,
    run_page: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", MLflow())
    if page == "docs/negatives.md" and not Path("shop").exists():
        run_page("docs/data.md")
    names = run_page(page)
    said = capsys.readouterr().out
    CHECKS.get(page, lambda names, said: None)(names, said)
    if page == "docs/reports.md":
        assert capsys.readouterr().out == "a1 and a2: 0.7100 ± 0.1271\n"  # 12.706 * 0.01


def imports(code: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dlrm_mtl"):
            yield node.lineno, node.module or ""
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("dlrm_mtl"))


def test_documents_and_examples_import_public_names_only() -> None:
    """The layout of the package is not promised, so it is not shown; studies are no examples, and may use all of it."""
    found = []
    for page in NAMES:
        for block in blocks(page, "python"):
            found += [f"{page}:{block.line + line - 1}: {name}" for line, name in imports(block.text) if "." in name]
    for path in (ROOT / "docs" / "examples").rglob("*.py"):
        found += [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in imports(path.read_text()) if "." in name]
    assert not found, f"import these names from dlrm_mtl itself: {'; '.join(found)}"


def test_the_tutorial_shows_what_its_cells_print_and_draw() -> None:
    for cell in json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]:
        shown = [output["output_type"] for output in cell.get("outputs", [])]
        source = "".join(cell["source"])
        assert shown == ["stream"] * ("print(" in source) + ["display_data"] * ("plt.show()" in source), source
