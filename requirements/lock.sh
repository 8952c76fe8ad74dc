#!/usr/bin/env bash
# Writes the lock files anew from setup.cfg: make lock
#
# A pin stays as it is where setup.cfg allows it; make lock UPGRADE=1 takes the newest releases.
# --universal resolves once for all Pythons and machines that pyproject.toml's [tool.uv] names; where they need different
# versions, a line carries a marker. The CPU set drops what only the CUDA build of torch needs. The dev set holds only
# what it adds to the CPU set, so that it fits beside either; the docs set holds what it adds to those.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=(.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url --no-annotate)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# lock NAME TITLE ARGUMENT...: the pins of requirements/NAME.txt into the working folder
lock() {
    local file=$work/$1.txt title=$2
    if [ -z "${UPGRADE:-}" ] && [ -f "requirements/$1.txt" ]; then cp "requirements/$1.txt" "$file"; fi
    "${UV[@]}" "${@:3}" --output-file "$file" >/dev/null
    {
        echo "# $title"
        echo "# Written by \`make lock\` (requirements/lock.sh) from setup.cfg; do not edit."
        echo "# Complete: install with \`pip install --no-deps -r\`, as \`make setup\` does. Linux, Python 3.10 to 3.13."
        # The markers that hold everywhere only hide the ones that matter.
        sed -E "s/ ; python_full_version < '3.14' and platform_python_implementation == 'CPython' and sys_platform == 'linux'\$//
            s/ and (sys_platform == 'linux'|platform_python_implementation == 'CPython')//g
            s/ ; (sys_platform == 'linux'|platform_python_implementation == 'CPython')\$//
            s/ ; python_full_version < '3.14'\$//; s/ and python_full_version < '3.14'//; s/python_full_version < '3.14' and //" "$file"
    } >"$file.new"
    mv "$file.new" "$file"
}
names_in() { sed -nE 's/^([A-Za-z0-9_.-]+)==.*/\1/p' "$@" | sort -u; }

# Neither set may resolve torchrec's own dependency on fbgemm-gpu: the pair is chosen here.
range_of() { sed -n "/^cuda =/,/^docs =/s/^    \($1>=.*\)/\1/p" setup.cfg; }
range_of torchrec >"$work/pair.in"
range_of fbgemm-gpu | sed 's/^fbgemm-gpu/fbgemm-gpu-cpu/' >"$work/cpu.in"
range_of fbgemm-gpu >"$work/cuda.in"
lock cuda "The CUDA set." setup.cfg --extra all "$work/pair.in" "$work/cuda.in"

echo "fbgemm-gpu ; sys_platform == 'never'" >"$work/cpu.overrides"
for name in $(names_in "$work/cuda.txt" | grep -E '^(cuda-|nvidia-|triton)'); do
    echo "$name ; sys_platform == 'never'" >>"$work/cpu.overrides"
done
lock cpu "The CPU set. Its torch is best the CPU-only wheel, version +cpu: requirements/install.sh tries that first." \
    setup.cfg --extra all "$work/pair.in" "$work/cpu.in" --override "$work/cpu.overrides"

omit() { for name in $(names_in "$@"); do echo "--no-emit-package $name"; done; }
# shellcheck disable=SC2046  # names of packages hold no spaces
lock dev "What tests and linters need on top of the CPU or CUDA set." \
    setup.cfg --extra all --extra dev --override "$work/cpu.overrides" -c "$work/cpu.txt" $(omit "$work/cpu.txt")
# The CUDA kernels' tests run in Triton's interpreter where there is no GPU.
grep '^triton==' "$work/cuda.txt" >>"$work/dev.txt"
# shellcheck disable=SC2046
lock docs "What building the documentation needs on top of the CPU or CUDA set and the dev set." \
    setup.cfg --extra all --extra dev --extra docs --override "$work/cpu.overrides" -c "$work/cpu.txt" \
    $(omit "$work/cpu.txt" "$work/dev.txt")
mv "$work"/{cpu,cuda,dev,docs}.txt requirements/
