"""Files, links, keys, options and names of code in the documents exist."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache

import pytest
import yaml

import dlrm_mtl
from dlrm_mtl.config.load import json_schema
from tests.docs.pages import NAMES, ROOT, blocks, lines, spans
from tests.docs.test_commands import COMPONENTS, commands, component_options, every_command, torchrun_options

FOLDERS = "configs|dlrm_mtl|docs|launchers|tests|benchmarks|requirements|studies|datasets"
INVENTED = {
    "configs/shop.yaml",
    "configs/mine.yaml",
    "configs/kuairand_NAME.yaml",
    "configs/kuairand_A_debug.yaml",
    "datasets/shop",
    "datasets/log",
    "datasets/log.csv",
}
"""Files that the reader makes, and placeholders."""


@pytest.mark.parametrize("page", NAMES)
def test_files_exist(page: str) -> None:
    missing = []
    for number, line in enumerate(lines(page), start=1):
        for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*[\w/]", line):
            there = (ROOT / path).exists() or ((ROOT / page).parent / path).exists()
            if path not in INVENTED and "." in path.rpartition("/")[2] and not there:
                missing.append(f"{page}:{number}: there is no file {path}")
    assert not missing, "; ".join(missing)


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    code = {block.line + at for block in blocks(page) for at in range(block.text.count("\n"))}
    for number, line in enumerate(lines(page), start=1):
        for target in re.findall(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)", line if number not in code else ""):
            if target.startswith(("http", "mailto", "reference/")):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            if not file.exists():
                wrong.append(f"{page}:{number}: there is no file {path}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(str(file.resolve().relative_to(ROOT))):
                wrong.append(f"{page}:{number}: {path or page} has no heading #{anchor}")
    assert not wrong, "; ".join(wrong)


@cache
def anchors(page: str) -> set[str]:
    headings = [line.lstrip("#").strip() for line in lines(page) if line.startswith("#")]
    explicit = re.findall(r'<a (?:id|name)="([^"]+)"|\{#([\w-]+)\}', "\n".join(lines(page)))
    return {slug(heading) for heading in headings} | {name for pair in explicit for name in pair if name}


def slug(heading: str) -> str:
    text = re.sub(r"\{#[^}]*\}", "", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text))


@cache
def known_names() -> set[str]:
    """Names and words of this repository: identifiers, keys and values in its code, configurations and data sets."""
    found = {*dir(builtins), *dlrm_mtl.__all__}
    for folder in ("dlrm_mtl", "launchers", "benchmarks", "studies", "docs", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= {path.stem, path.parent.name} if "docs" not in path.parts[-2:] else set()
            tests = folder == "tests"
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found.add(node.name)
                elif tests:
                    continue
                elif isinstance(node, ast.Name):
                    found.add(node.id)
                elif isinstance(node, ast.Attribute):
                    found.add(node.attr)
                elif isinstance(node, ast.arg | ast.keyword) and node.arg:
                    found.add(node.arg)
                elif isinstance(node, ast.alias):
                    found |= set((node.asname or node.name).split("."))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
                    found |= set(re.findall(r"\w+", node.value))
    for path in [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("datasets/*/dataset.yaml")]:
        found |= {str(word) for word in words_of(yaml.safe_load(path.read_text()))} | {path.stem}
    return found | set(re.findall(r'"(\w+)"', json_schema()))


def words_of(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from words_of(item)
    elif isinstance(value, str):
        yield value


@cache
def options() -> set[str]:
    found = {"--help", "--version", "--quick", "--json", "--plot", *torchrun_options()}
    found |= {option for component in COMPONENTS for option in component_options(component)}
    found |= {option for _, command in every_command(commands(), "") for one in command.params for option in one.opts}
    # Negated forms, those of scripts, and torchx's and pip's.
    found |= {
        option
        for _, command in every_command(commands(), "")
        for one in command.params
        for option in one.secondary_opts
    }
    for path in [*(ROOT / "studies").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        found |= set(re.findall(r'"(--[a-z-]+)"', path.read_text()))
    return found | {"--workspace", "--dryrun", "--wait", "--log", "--no-deps"}


ELSEWHERE = {
    # of PyTorch, TorchRec, TensorFlow Recommenders, pandas, Python, Slurm and torchx
    *("torch", "torchrec", "utils", "GradScaler", "TrainPipelineBase", "fused_optimizer", "KeyedTensor", "init_fn"),
    *("ManagedCollisionEmbeddingBagCollection", "use_standard_accumulator_update", "to_parquet", "gbk"),
    *("sacct", "torchxconfig", "KillWait", "GraceTime", "SlurmdTimeout", "BeginTime"),
    # of published data sets
    *("AliExpress_NL", "day_23", "sample_skeleton_train", "common_features_train", "field_101", "field_205"),
    # placeholders and examples
    *("product_NAME", "deep_NAME", "logit_TASK", "event_time", "step_00000060"),
}
"""Names that are not of this repository."""


@pytest.mark.parametrize("page", NAMES)
def test_names_in_code_spans_exist(page: str) -> None:
    wrong = []
    introduced = {
        word for line in lines(page) if re.match(r"    |[-{ ]*\{?name: ", line) for word in re.findall(r"\w+", line)
    }
    fenced = set(re.findall(r"\w+", " ".join(re.findall(r"```.*?```", "\n".join(lines(page)), re.S))))
    for span in spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span.text):
            if option not in options():
                wrong.append(f"{span.place}: no command has {option}")
        if not re.fullmatch(r"@?[A-Za-z_][\w.]*(\([^)]*\))?", span.text):
            continue
        for word in re.sub(r"\(.*", "", span.text.lstrip("@")).split("."):
            if word.isupper() or word in known_names() | introduced | fenced | ELSEWHERE:
                continue
            wrong.append(f"{span.place}: `{span.text}`: nothing is called {word}")
    assert not wrong, "; ".join(wrong)
