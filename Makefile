# All paths are relative, so that a folder whose name holds a space works.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: docs help setup train test test-all chaos quality lint format lock wheel clean

# The build that is installed already, or else the one that this machine can use.
ifndef BUILD
BUILD := $(patsubst .venv/ready-%,%,$(firstword $(wildcard .venv/ready-*)))
endif
ifeq ($(BUILD),)
BUILD := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter $(BUILD),cpu cuda),)
$(error BUILD is '$(BUILD)'; it must be cpu or cuda)
endif
READY := .venv/ready-$(BUILD)
# Test files side by side: most tests start one process at a time. PARALLEL= runs them one after the other.
PARALLEL := -n 2 --dist loadfile

# A virtual environment does not survive being moved or copied: it would run the other folder's code.
ifneq ($(shell cat .venv/made-in 2>/dev/null),$(CURDIR))
.PHONY: $(READY) .venv/made-in
endif

help:
	@echo "make setup      install the pinned packages into .venv (BUILD=cpu or cuda; PYTHON=...)"
	@echo "make train      train configs/kuairand_mmoe.yaml with two processes (ARGS=\"-j 1x1 --set training.epochs=1\")"
	@echo "make test       run the tests, about 20 minutes on 2 cores (ARGS=\"-k name\")"
	@echo "make test-all   run the slow tests, too"
	@echo "make chaos      kill trainings at random moments, and compare what they end with (ROUNDS=300; goes on after Ctrl-C)"
	@echo "make quality    train eight configurations with three seeds, and compare with the record (minutes; goes on after Ctrl-C)"
	@echo "make lint       check format, style, types, and that imports run downwards"
	@echo "make format     put format and imports in order"
	@echo "make docs       build the documentation as a site into build/site"
	@echo "make lock       write requirements/*.txt anew from setup.cfg (UPGRADE=1: with the newest releases)"
	@echo "make wheel      build a wheel with the native kernels, and an sdist, into dist/"
	@echo "make clean      remove .venv and what the tools leave behind"

setup: $(READY)
	@:

$(READY): requirements/$(BUILD).txt requirements/dev.txt requirements/install.sh setup.cfg setup.py $(wildcard dlrm_mtl/embeddings/kernels/csrc/*) | .venv/made-in
	@rm -f .venv/ready-*
	@bash requirements/install.sh $(BUILD)
	@touch $@

.venv/made-in:
	@if [ -e $@ ]; then rm -rf .venv; fi
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	        "$$python" -m venv .venv && pwd -P >$@ && exit 0; \
	        rm -rf .venv; \
	        echo "$$python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "dlrm_mtl needs Python 3.10 to 3.13 and found $$($(or $(PYTHON),python3) --version 2>/dev/null || echo no Python): install one, or name it with make PYTHON=/path/to/python." >&2; \
	exit 1

# Each training gets a folder of its own. The job's output comes on torchx's stderr; its stdout holds the job's handle only.
train: setup
	@.venv/bin/torchx --log_level WARNING run -s local_cwd launchers/train.py:ddp \
	    $(if $(findstring --output,$(ARGS)),,--output runs/train-$$(date +%Y%m%d-%H%M%S)) $(ARGS) 2>&1 >/dev/null

test: setup
	@.venv/bin/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: setup
	@.venv/bin/python -m pytest $(PARALLEL) $(ARGS)

chaos: setup
	@nice .venv/bin/python -m tests.chaos --rounds $(or $(ROUNDS),300) $(ARGS)

quality: setup
	@nice .venv/bin/python -m tests.quality $(ARGS)

lint: setup
	@.venv/bin/ruff format --check --quiet . || { echo "These files are not formatted: run make format."; .venv/bin/ruff format --check .; exit 1; }
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports >.venv/imports.log || { cat .venv/imports.log; exit 1; }

format: setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

docs: setup
	@.venv/bin/python -c "import material" 2>/dev/null || .venv/bin/python -m pip install --quiet --no-deps -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv/bin/mkdocs build --quiet && echo "build/site/index.html: open it in a browser"

lock: setup
	@.venv/bin/python -m pip install --quiet uv==0.13.9
	@UPGRADE=$(UPGRADE) bash requirements/lock.sh

# auditwheel gives the wheel the oldest manylinux tag that its native library allows.
wheel: setup
	@rm -rf build dist
	@mkdir dist
	@.venv/bin/python -m build --no-isolation --outdir dist . >dist/log || { cat dist/log; exit 1; }
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/auditwheel --quiet repair --plat auto --wheel-dir dist dist/*-linux_*.whl
	@rm -rf build dist/log dist/*-linux_*.whl
	@ls dist

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
