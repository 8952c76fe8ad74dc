#!/usr/bin/env bash
# Writes the lock files anew from setup.cfg: make lock
#
# --universal resolves once for all Pythons and machines that pyproject.toml's [tool.uv] names; where they need different
# versions, a line carries a marker. The CPU set drops what only the CUDA build of torch needs. The dev set holds only
# what it adds to the CPU set, so that it fits beside either.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=(.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url --no-annotate)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

head_of() {
    echo "# $1"
    echo "# Written by \`make lock\` (requirements/lock.sh) from setup.cfg; do not edit."
    echo "# Complete: install with \`pip install --no-deps -r\`, as \`make setup\` does. Linux, Python 3.10 to 3.13."
}

# Neither set may resolve torchrec's own dependency on fbgemm-gpu: the pair is chosen here.
pinned() { sed -n "/^cuda =/,/^kubernetes =/s/^    \($1==.*\)/\1/p" setup.cfg; }
pinned torchrec >"$work/pair.in"
pinned fbgemm-gpu | sed 's/^fbgemm-gpu/fbgemm-gpu-cpu/' >"$work/cpu.in"
pinned fbgemm-gpu >"$work/cuda.in"
echo "fbgemm-gpu ; sys_platform == 'never'" >"$work/cpu.overrides"

{
    head_of "The CUDA set."
    "${UV[@]}" setup.cfg "$work/pair.in" "$work/cuda.in"
} >"$work/cuda.txt"

for name in $(sed -nE 's/^(cuda-|nvidia-|triton)([^= ]*).*/\1\2/p' "$work/cuda.txt" | sort -u); do
    echo "$name ; sys_platform == 'never'" >>"$work/cpu.overrides"
done
{
    head_of "The CPU set. Its torch is best the CPU-only wheel, version +cpu: requirements/install.sh tries that first."
    "${UV[@]}" setup.cfg "$work/pair.in" "$work/cpu.in" --override "$work/cpu.overrides"
} >"$work/cpu.txt"

omit=()
for name in $(sed -nE 's/^([A-Za-z0-9_.-]+)==.*/\1/p' "$work/cpu.txt" | sort -u); do
    omit+=(--no-emit-package "$name")
done
{
    head_of "What tests and linters need on top of the CPU or CUDA set."
    "${UV[@]}" setup.cfg --extra dev --override "$work/cpu.overrides" -c "$work/cpu.txt" "${omit[@]}"
    # The CUDA kernels' tests run in Triton's interpreter where there is no GPU.
    sed -n '/^triton==/p' "$work/cuda.txt"
} >"$work/dev.txt"

# The markers that hold everywhere only hide the ones that matter.
sed -i -E "s/ ; python_full_version < '3.14' and sys_platform == 'linux'\$//; s/ and sys_platform == 'linux'\$//
    s/ and python_full_version < '3.14'//; s/python_full_version < '3.14' and //" "$work"/{cpu,cuda,dev}.txt
mv "$work/cpu.txt" "$work/cuda.txt" "$work/dev.txt" requirements/
