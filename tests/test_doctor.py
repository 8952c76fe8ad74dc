"""The check of the installed set, against folders of real package metadata."""

import configparser
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrm_mtl import doctor
from dlrm_mtl.core import extras
from dlrm_mtl.core.errors import UserError

CPU = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm_gpu-cpu": "1.8.0", "torchx": "0.7.0"}
CUDA = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0", "torchx": "0.7.0"}


def install(folder: Path, versions: dict[str, str | None], cuda: str | None = None) -> list[str]:
    """Make ``folder`` look like a site-packages folder with these packages, plus all others that are needed."""
    for name, version in {**dict.fromkeys(doctor.needed(), "1.0"), **versions}.items():
        if version is not None:
            info = folder / f"{re.sub('[-.]+', '_', name)}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n")
    return [str(folder)]


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize(
    ("versions", "cuda"),
    [(CPU, None), ({**CPU, "torch": "2.13.1"}, None), (CUDA, "13.0"), ({**CUDA, "torch": "2.13.0+cu130"}, "13.0")],
)
def test_fitting_sets_have_no_problems(
    tmp_path: Path, versions: dict[str, str | None], cuda: str | None, has_gpu: bool
) -> None:
    assert doctor.problems(path=install(tmp_path, versions, cuda), has_gpu=has_gpu) == []


def test_the_standard_torch_serves_the_cpu_set_where_there_is_no_gpu(tmp_path: Path) -> None:
    path = install(tmp_path, {**CPU, "torch": "2.13.0"}, cuda="13.0")
    assert doctor.problems(path=path, has_gpu=False) == []
    assert doctor.problems(path=path, has_gpu=True) == [
        "torch 2.13.0 uses this machine's GPU but fbgemm-gpu-cpu 1.8.0 cannot: run pip uninstall -y fbgemm-gpu-cpu "
        "&& pip install --no-deps fbgemm-gpu==1.8.0, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
    ]


@pytest.mark.parametrize(
    ("versions", "cuda", "has_gpu", "usable", "hint"),
    [
        (CPU, None, False, False, None),
        (CPU, None, True, False, "the driver shows a GPU, but torch 2.13.0+cpu is a CPU build"),
        (CUDA, "13.0", True, True, None),
        (CUDA, "13.0", False, False, "torch 2.13.0 is a CUDA build and sees no GPU (there is none)"),
        (CUDA, "13.0", True, False, "the driver shows a GPU that torch 2.13.0 cannot use"),
    ],
)
def test_hints_on_gpus(
    tmp_path: Path, versions: dict[str, str | None], cuda: str | None, has_gpu: bool, usable: bool, hint: str | None
) -> None:
    found = doctor.hints(install(tmp_path, versions, cuda), has_gpu, usable)
    assert len(found) == (hint is not None)
    assert all(text.startswith(str(hint)) for text in found)


def test_a_hidden_gpu_is_said_to_be_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (hint,) = doctor.hints(install(tmp_path, CUDA, "13.0"))
    assert "sees no GPU (CUDA_VISIBLE_DEVICES is empty)" in hint


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (
            {**CPU, "fbgemm-gpu": "1.7.0"},
            "fbgemm-gpu 1.7.0 and fbgemm-gpu-cpu 1.8.0 are both installed and have overwritten each other's files: run "
            "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        (
            {**CPU, "fbgemm_gpu-cpu": None},
            "fbgemm is not installed (pip cannot choose between its CPU and CUDA builds): "
            "run pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        (
            {**CPU, "fbgemm_gpu-cpu": "1.2.0"},
            "fbgemm-gpu-cpu 1.2.0 is installed where 1.8.0 is expected: run pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        (
            {**CUDA, "torch": "2.13.0+cpu"},
            "torch 2.13.0+cpu is a CPU build but fbgemm-gpu 1.8.0 needs CUDA: "
            "run pip uninstall -y fbgemm-gpu && pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        (
            {**CPU, "torch": "2.12.1+cpu"},
            "torch 2.12.1+cpu is installed where 2.13.0 is expected: run pip install torch==2.13.0",
        ),
        ({**CPU, "torchx": None}, "torchx is not installed: run pip install torchx==0.7.0"),
        ({**CPU, "torchrec": None}, "torchrec is not installed: run pip install --no-deps torchrec==1.8.0"),
        (
            {**CPU, "tqdm": None, "pyarrow": None},
            "pyarrow, tqdm not installed: run pip install pyarrow tqdm",
        ),
    ],
)
def test_each_problem_is_one_sentence_with_the_remedy(
    tmp_path: Path, versions: dict[str, str | None], sentence: str
) -> None:
    assert doctor.problems(path=install(tmp_path, versions), has_gpu=False) == [sentence]


def test_a_plain_pip_install_is_told_which_pair_to_add(tmp_path: Path) -> None:
    path = install(tmp_path, {"torch": "2.13.0", "torchx": "0.7.0"}, cuda="13.0")
    commands = [sentence.partition(": run ")[2] for sentence in doctor.problems(path=path, has_gpu=True)]
    assert commands == ["pip install --no-deps fbgemm-gpu==1.8.0", "pip install --no-deps torchrec==1.8.0"]


def test_this_environment_is_well() -> None:
    assert doctor.problems(thorough=True) == []
    doctor.check_or_raise()
    facts = dict(doctor.facts())
    assert facts["torch"].startswith("2.13.")
    assert "gloo" in facts["backends"]
    assert facts["table kernels, CPU"].startswith(("native, ", "PyTorch (slow): "))
    assert doctor.report().splitlines()[0].split() == ["python", *facts["python"].split()]


def test_the_check_loads_no_heavy_package() -> None:
    code = "import sys; from dlrm_mtl.doctor import problems; problems(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def setup_cfg(repository: Path) -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    return setup


def pins(file: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\n]+)", file.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_expected_versions_are_those_of_the_lock_files_and_setup_cfg(repository: Path) -> None:
    cpu, cuda = pins(repository / "requirements/cpu.txt"), pins(repository / "requirements/cuda.txt")
    expected = {name: {version} for name, version in doctor.EXPECTED.items()}
    assert {name: cuda[name] for name in expected} == expected
    cpu_name = {"fbgemm-gpu": "fbgemm-gpu-cpu"}
    assert {name: cpu[cpu_name.get(name, name)] for name in expected} == expected
    assert "fbgemm-gpu" not in cpu
    assert "fbgemm-gpu-cpu" not in cuda

    extras = setup_cfg(repository)["options.extras_require"]
    ranges = [*setup_cfg(repository)["options"]["install_requires"].split(), *"".join(extras.values()).split()]
    for name, version in doctor.EXPECTED.items():
        release = ".".join(version.split(".")[:2])
        assert any(re.fullmatch(rf"{name}>={release}(,<[\d.]+)?", line) for line in ranges), name


def test_metadata_has_ranges_and_lock_files_have_the_pins(repository: Path) -> None:
    setup = setup_cfg(repository)
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    assert not [line for line in "\n".join(lines).split() if "==" in line]


def test_what_is_needed_is_read_from_the_metadata() -> None:
    core = doctor.needed("none")
    assert core == ["numpy", "pydantic", "PyYAML", "rich", "typer", "typing-extensions"]
    assert set(core) < set(doctor.needed("train")) < set(doctor.needed())
    assert {"duckdb", "jinja2", "matplotlib", "pyarrow", "tensorboard", "tqdm"} <= set(doctor.needed())


def test_every_optional_package_names_an_extra_that_has_it(repository: Path) -> None:
    listed = setup_cfg(repository)["options.extras_require"]
    for module, extra in extras.EXTRA_OF.items():
        names = re.findall(r"^[\w-]+", listed["cuda" if module in extras.PAIR else extra], re.MULTILINE)
        assert module.replace("_", "-") in names, (module, extra)


def test_a_missing_package_ends_in_the_extra_that_has_it() -> None:
    error = extras.missing_extra("pyarrow.parquet")
    assert isinstance(error, UserError)
    assert isinstance(error, ImportError)
    assert str(error) == 'pyarrow is not installed: run pip install "dlrm-mtl[reader]"'
    assert str(extras.missing_extra("torchrec")) == (
        'torchrec is not installed: run pip install "dlrm-mtl[tables]" && pip install --no-deps torchrec==1.8.0 '
        'fbgemm-gpu-cpu==1.8.0 (with a CUDA GPU: pip install "dlrm-mtl[cuda]")'
    )
    assert extras.missing_extra("somebody_elses.module") is None
    with pytest.raises(ModuleNotFoundError, match="somebody_elses"), extras.extras_named():
        importlib.import_module("somebody_elses")


def test_a_command_ends_in_the_extra_that_has_a_missing_package(
    call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    for name in [name for name in sys.modules if name.startswith("dlrm_mtl.reports")]:
        monkeypatch.delitem(sys.modules, name)
    assert call("data", "describe", tmp_path) == (
        2,
        'error: duckdb is not installed: run pip install "dlrm-mtl[prepare]"\n',
    )


@pytest.mark.parametrize("file", ["cpu.txt", "cuda.txt", "dev.txt"])
def test_lock_files_name_no_index_and_no_path(repository: Path, file: str) -> None:
    lines = (repository / "requirements" / file).read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+( ; .*)?", line), line
        assert "://" not in line
