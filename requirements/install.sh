#!/usr/bin/env bash
# Installs the pinned CPU or CUDA set, the development tools and this package (editable) into .venv:
#   requirements/install.sh cpu|cuda
set -euo pipefail
cd "$(dirname "$0")/.."

build=$1
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
installed() {
    .venv/bin/python -c "import importlib.metadata as m, sys; print(*(d.version for d in m.distributions(name=sys.argv[1])))" "$1"
}

echo "Setting up .venv with the $build build."
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "requirements/$build.txt")

# The two builds of fbgemm share one folder, so neither survives the other's installation or removal.
case $build in
    cpu) other=fbgemm-gpu ;;
    cuda) other=fbgemm-gpu-cpu ;;
    *) echo "requirements/install.sh: BUILD is '$build'; it must be cpu or cuda." >&2 && exit 1 ;;
esac
if [ -n "$(installed "$other")" ]; then
    pip uninstall -y -q fbgemm-gpu fbgemm-gpu-cpu
fi

# `torch==X` accepts both X and X+cpu, so the build of torch is settled before the rest is installed.
if [ "$build" = cuda ]; then
    pip install --no-deps "torch===$torch"
elif [ "$(installed torch)" != "$torch+cpu" ]; then
    if ! pip install --no-deps --retries 1 "torch==$torch+cpu" 2>/dev/null; then
        echo "The package indexes that pip knows have no CPU-only torch $torch, so the standard build is installed: it works" \
            "as well but takes some 3 GB more; for the small one, add PyTorch's CPU wheel index (PIP_EXTRA_INDEX_URL)."
        pip install "torch===$torch" -c requirements/cuda.txt
    fi
fi
echo "Installing the other packages."
pip install --no-deps -r "requirements/$build.txt" -r requirements/dev.txt | { grep --line-buffered Downloading || true; }

# Without isolation the build uses the pinned setuptools and needs no network.
pip install --quiet --no-deps --no-build-isolation -e .
.venv/bin/python -c "import sys; from dlrm_mtl.doctor import problems; sys.exit('\n'.join(problems()) or None)"
