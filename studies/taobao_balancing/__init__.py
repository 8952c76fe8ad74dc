"""Do MetaBalance and gradient surgery help to predict purchases on Taobao? The study of R. Lee (2023), with intervals.

The claims are those of "Exploring Optimizations in Multi-task Recommendation via Manipulating Auxiliary Gradients" (R. Lee,
Texas A&M University, 2023), which states no intervals. Here every method is trained with the same seeds; intervals are
those of Student's t over seeds, and methods are compared with vanilla seed by seed. A seed determines the validation split,
initial weights, negatives, the order of rows and dropout.

Data: the files of the EHCF paper for Taobao, `buy.train.txt`, `buy.test.txt` and `cart.csv`, see docs/public_datasets.md.
Purchases are the target, carts the auxiliary. Model: NeuMF with one tower per task. All items but the training ones are ranked
for every user with test purchases. The learning rate is the one with which vanilla has the highest NDCG@10 on validation
purchases, on seeds of their own; all methods use it. The best epoch of a run is chosen by the same metric.

    python -m studies taobao_balancing --data FOLDER --jobs 2 --json taobao.json --plot taobao.svg

The same command goes on where an interrupted one has stopped, run by run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from studies.taobao_balancing.purchases import Interactions, prepare_once
from studies.taobao_balancing.report import plot, tables
from studies.taobao_balancing.runs import LANES, Scale
from studies.taobao_balancing.study import TUNING_SEEDS, Ledger, Plan, make

QUICK = Scale(user_items=5, item_users=5, epochs=2, batch=512, validation_users=100, dim=8, deep=(8, 4), tower=(8,))


def arguments_of(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    full = Scale()
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the EHCF files, plain or .gz")
    parser.add_argument(
        "--quick", action="store_true", help="small and short: to see that it works, not what comes out"
    )
    parser.add_argument("--seeds", type=int, help="runs of every method, 2 or more; default: 5, with --quick 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with a thread each; default: 1")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="processes over which a run's tables are sharded: 1, 2 or 4; default: 1",
    )
    for name, text in (
        ("user_items", "keep users with so many distinct purchases (k-core, test purchases included)"),
        ("item_users", "keep items with so many distinct buyers"),
        ("epochs", "most epochs of a run, validated after each"),
        ("patience", "epochs without a better one after which a run stops"),
        ("batch", "rows of a batch, a multiple of 4"),
        ("validation_users", "users on whom the best epoch is chosen"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{text}; default: {getattr(full, name)}")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/taobao_balancing"), metavar="FOLDER", help="for prepared data"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where every finished run is noted; those already there are not repeated",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to write the plot, as SVG")
    return parser.parse_args(given)


def plan_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Plan:
    """The runs that the command line asks for."""
    scale = QUICK if arguments.quick else Scale()
    for field in dataclasses.fields(Scale):
        value = getattr(arguments, field.name, None)
        if value is not None:
            if value < 1:
                parser.error(f"--{field.name.replace('_', '-')} {value}: give 1 or more.")
            scale = dataclasses.replace(scale, **{field.name: value})
    if scale.batch % LANES:
        parser.error(
            f"--batch {scale.batch}: is not a multiple of {LANES}; give {scale.batch // LANES * LANES + LANES}."
        )
    if arguments.processes not in (1, 2, LANES):
        parser.error(f"--processes {arguments.processes}: {LANES} lanes go on 1, 2 or {LANES} processes.")
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: give 1 or more.")
    seeds = arguments.seeds if arguments.seeds is not None else 2 if arguments.quick else 5
    if not 2 <= seeds < TUNING_SEEDS:
        parser.error(f"--seeds {seeds}: an interval needs 2 seeds at least, and {TUNING_SEEDS} are tuned on.")
    return Plan(scale, seeds, tuning_seeds=1, rates=(3e-3, 1e-2)) if arguments.quick else Plan(scale, seeds)


def run(plan: Plan, arguments: argparse.Namespace) -> None:
    """Make all runs, print the tables, write the plot."""
    start = time.monotonic()
    scale = plan.scale

    def tell(text: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)

    def folder_of(seed: int) -> Path:
        return prepare_once(arguments.data, arguments.cache, scale.user_items, scale.item_users, scale.validation, seed)

    ledger = Ledger(arguments.json, scale)
    ledger.data = Interactions(folder_of(1)).counts
    for name, count in ledger.data.items():
        print(f"{count:>10,} {name}")
    tell("choosing the learning rate")
    make(plan.tuning, ledger, folder_of, arguments.jobs, arguments.processes, tell)
    tuning = ledger.of(plan.tuning)
    rate = plan.best_rate(tuning)
    tell(f"all methods at rate {rate:g}")
    runs = plan.study(rate)
    make(runs, ledger, folder_of, arguments.jobs, arguments.processes, tell)
    results = ledger.of(runs)
    print(tables(plan.watched(tuning), results))
    if arguments.plot:
        arguments.plot.write_text(plot(results), encoding="utf-8")


def main(given: Sequence[str]) -> None:
    """Run the study from the command line."""
    about, *_ = (__doc__ or "").split("\n\n    python")
    parser = argparse.ArgumentParser(
        prog="python -m studies taobao_balancing",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="An interrupted study goes on with the same command, if it has a --json file.",
    )
    arguments = arguments_of(parser, given)
    plan = plan_of(parser, arguments)
    try:
        run(plan, arguments)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        kept = "the same command goes on" if arguments.json else "without --json nothing is kept"
        parser.exit(130, f"interrupted; {kept}.\n")
