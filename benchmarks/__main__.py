"""The command line: ``python -m benchmarks NAME [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = {
    # name -> module with run(quick) -> figures, which also prints them
    "balancing": "benchmarks.balancing",
    "bundle-loading": "benchmarks.bundle_loading",
    "checkpoint": "benchmarks.checkpoint",
    "data-loading": "benchmarks.data_loading",
    "dense-optimizer": "benchmarks.dense_optimizer",
    "end-to-end": "benchmarks.end_to_end",
    "growth": "benchmarks.growth",
    "multitask": "benchmarks.multitask",
    "negatives": "benchmarks.negatives",
    "planning": "benchmarks.planning",
    "scaling": "benchmarks.scaling",
    "quantised-lookup": "benchmarks.quantised_lookup",
    "prepare-userbehavior": "benchmarks.prepare_userbehavior",
    "serving": "benchmarks.serving",
    "sparse-update": "benchmarks.sparse_update",
    "sparse-update-cuda": "benchmarks.sparse_update_cuda",
    "startup": "benchmarks.startup",
    "unbounded-ids": "benchmarks.unbounded_ids",
}


def main() -> None:
    """Run one benchmark."""
    # Without --help at first, so that it shows the arguments of the benchmark that is named, too.
    parser = argparse.ArgumentParser("python -m benchmarks", description="Side-by-side measurements.", add_help=False)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where to draw the figures, if the benchmark does")
    if not set(BENCHMARKS) & set(sys.argv[1:]):
        parser.add_argument("-h", "--help", action="help", help="show this help message and exit")
    chosen, _ = parser.parse_known_args()
    module = import_module(BENCHMARKS[chosen.name])
    parser.add_argument("-h", "--help", action="help", help="show this help message and exit")
    parser.description = (module.__doc__ or "").strip()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.svg and not hasattr(module, "draw"):
        parser.error(f"{arguments.name} draws no figures")
    options = {name: value for name, value in vars(arguments).items() if name not in ("name", "quick", "json", "svg")}
    kept = False

    def keep(found: dict[str, Any], complete: bool = False) -> None:
        nonlocal kept
        kept = arguments.json is not None
        if arguments.json and int(os.environ.get("RANK", "0")) == 0:
            figures = {"benchmark": arguments.name, "machine": machine(), "complete": complete, **found}
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")

    if "keep" in inspect.signature(module.run).parameters:
        options["keep"] = keep
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = module.run(arguments.quick, **options)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {arguments.json} holds what was measured" if kept else "interrupted")
    if arguments.svg:
        module.draw(found, arguments.svg)
    keep(found, complete=True)


def machine() -> dict[str, Any]:
    """The machine and the versions behind the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
