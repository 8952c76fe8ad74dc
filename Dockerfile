# The package with its pinned set, for schedulers that run containers; launchers/README.md says how.
#   docker build -t dlrm_mtl:1 .                              the CPU set
#   docker build -t dlrm_mtl:1-cuda --build-arg BUILD=cuda .  the CUDA set; the driver comes from the host
FROM python:3.12-slim

# g++ compiles the native kernels, and Triton needs a C compiler when it runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG BUILD=cpu
# Where CPU-only builds of PyTorch are; pip prefers their version, +cpu, to the same one from PyPI.
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /app
COPY requirements/${BUILD}.txt requirements.txt
RUN pip install --no-cache-dir --no-deps $(test "$BUILD" = cuda || echo "--extra-index-url $CPU_INDEX") -r requirements.txt

COPY LICENSE MANIFEST.in README.md pyproject.toml setup.cfg setup.py package/
COPY dlrm_mtl package/dlrm_mtl
RUN pip install --no-cache-dir --no-deps ./package && rm -r package

COPY configs configs
COPY datasets datasets

# No entry point: torchx gives whole commands. `doctor` says whether the set fits together, and whether a GPU is there.
CMD ["dlrm-mtl", "doctor"]
