"""Taobao UserBehavior: a log of views, carts, favourites and purchases, to rows with one label per behaviour.

Output rows. ``--rows pairs``: one row per user and item that occur together, with label 1 for every behaviour that occurred
at least once. ``--rows events``: one row per distinct event, with label 1 for its own behaviour and 0 for the others. With
``--split time`` a pair is a row in every split in whose days it occurs. Every row is followed by ``--negatives``
(validation and test: ``--evaluation-negatives``) rows with the same user, a drawn item and all labels 0.

The random split holds out pairs of the target behaviour. With the leakage filter, their other events are held out, too, as
further labels of the held-out row. Without it these events stay in training, where the pair's target label is null, and the
held-out row's other labels are null. So a label never counts in two splits, and a held-out purchase never counts as a
non-purchase.

Training rows are in random order, validation and test rows by user. Columns: user, item, category (ids by frequency in
training, 0 for values that do not occur there), user_id and item_id (as published), time (unix seconds, of the first event;
null for a negative), sampled (1 for a negative), labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import duckdb
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare.common.duck import SPLITS, Memory, Threads, find_files
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.prepare.common.preparation import comma_separated, preparing, refuse_empty, require_training
from dlrm_mtl.prepare.common.user_item import RowFactory, RowOptions, number, write_rows
from dlrm_mtl.prepare.userbehavior import ehcf, log
from dlrm_mtl.prepare.userbehavior.divide import Division, by_pairs, by_time, keep_core
from dlrm_mtl.prepare.userbehavior.log import BEHAVIOURS
from dlrm_mtl.prepare.userbehavior.text import about, specification


@register("adapter", "userbehavior")
def prepare(
    input: Path,
    output: Path,
    *,
    layout: Annotated[
        Literal["raw", "ehcf"],
        typer.Option(help="`raw`: UserBehavior.csv; `ehcf`: the files of the EHCF paper, with its test purchases."),
    ] = "raw",
    behaviours: Annotated[
        str, typer.Option(help="Behaviours to use as labels, comma separated; default: all that the files have.")
    ] = "",
    target: Annotated[str, typer.Option(help="The behaviour that is split, filtered by and held out.")] = "buy",
    rows: Annotated[
        Literal["pairs", "events"], typer.Option(help="One row per user-item pair, or one per event.")
    ] = "pairs",
    split: Annotated[
        Literal["random", "time"],
        typer.Option(help="Hold out random pairs of the target behaviour, or the last two days (one each)."),
    ] = "random",
    validation_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the target's pairs.")] = 0.15,
    test_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the target's pairs; ehcf has its own test pairs.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(help="Seed of the split, of the negatives and of the order of rows.")] = 0,
    user_items: Annotated[
        int, typer.Option(min=0, help="k-core: keep users with so many distinct items of the target.")
    ] = 0,
    item_users: Annotated[
        int, typer.Option(min=0, help="k-core: keep items with so many distinct users of the target.")
    ] = 0,
    leakage_filter: Annotated[
        bool, typer.Option(help="Take other events of held-out pairs out of training (random split).")
    ] = True,
    negatives: Annotated[int, typer.Option(min=0, help="Sampled negatives per training row.")] = 1,
    evaluation_negatives: Annotated[
        int, typer.Option(min=0, help="Sampled negatives per validation and test row.")
    ] = 4,
    negative_exponent: Annotated[
        float, typer.Option(min=0, help="Negatives are drawn by popularity to this power; 0: uniformly.")
    ] = 0.0,
    known_negatives: Annotated[
        bool, typer.Option(help="Let negatives be items that the user had something to do with.")
    ] = False,
    memory: Memory = None,
    threads: Threads = None,
    progress: Progress = lambda what, done: None,
) -> None:
    """Taobao UserBehavior: views, carts, favourites and purchases, as labels of user-item pairs or of events.

    Writes the data set made from the files in ``input`` to the folder ``output``, which must not exist or be empty. Raises
    :class:`UserError` if an input is missing or malformed, options do not fit, or ``output`` cannot be written.
    """
    names = _behaviours(behaviours, target, ehcf.present(input) if layout == "ehcf" else BEHAVIOURS)
    if layout == "ehcf" and (split == "time" or rows == "events"):
        raise UserError(
            "prepare userbehavior: the files of --layout ehcf have no times; use --split random, --rows pairs."
        )
    require_training("userbehavior", validation_share=validation_share, test_share=test_share)
    seeing = [BEHAVIOURS.index(name) for name in names]
    goal = BEHAVIOURS.index(target)
    notes: list[str] = []
    with preparing(output, progress, memory, threads) as preparation:
        connection = preparation.connection
        progress("reading", 0.0)
        wanted = f"e.behaviour IN ({', '.join(map(str, seeing))})"
        if layout == "ehcf":
            ehcf.load(connection, input, names)
        else:
            log.load(connection, find_files(input, ["UserBehavior*.csv"], "UserBehavior.csv"), notes)
            wanted += f" AND {log.WITHIN}"
        wanted = keep_core(connection, wanted, goal, user_items, item_users, notes, progress)
        progress("splitting", 0.3)
        if split == "time":
            division = by_time()
        else:
            division = by_pairs(
                connection,
                wanted,
                target,
                (validation_share, test_share),
                seed,
                leakage_filter=leakage_filter,
                given=layout == "ehcf",
                notes=notes,
            )
        progress("grouping", 0.35)
        _group(connection, wanted, division, rows)
        progress("numbering", 0.55)
        sizes = number(connection)
        options = RowOptions(
            behaviours=seeing,
            names=names,
            target=goal,
            masked=not leakage_filter and split == "random",
            negatives=(negatives, evaluation_negatives, evaluation_negatives),
            exponent=negative_exponent,
            known_negatives=known_negatives,
            seed=seed,
            categories=layout == "raw",
        )
        factory = RowFactory(connection, options)
        counts = write_rows(connection, preparation.folder, factory, progress)
        refuse_empty(dict(zip(SPLITS, counts, strict=True)), "raise its share, or loosen the filters")
        if factory.exhausted:
            notes.append(f"{factory.exhausted:,} negatives left out: the user knows every item")
        splits = dict(zip(SPLITS, division.about, strict=True))
        whole = about(rows, layout, names, target, notes, options)
        preparation.describe(specification(sizes, names, splits, whole, options.categories), 0.95)


def _behaviours(text: str, target: str, available: tuple[str, ...]) -> list[str]:
    chosen = comma_separated(text) or list(available)
    for name in [*chosen, target]:
        if name not in available:
            raise UserError(f"prepare userbehavior: there is no behaviour {name!r}; {suggest(name, available)}.")
    if target not in chosen:
        raise UserError(f"prepare userbehavior: the target {target!r} is not among --behaviours {text}; add it.")
    return [name for name in BEHAVIOURS if name in chosen]


def _group(connection: duckdb.DuckDBPyConnection, wanted: str, division: Division, rows: str) -> None:
    """Make the table rows, see :mod:`~dlrm_mtl.prepare.common.user_item`, from the table events."""
    key = f"e.user, e.item, {division.part}" + (", e.time, e.behaviour" if rows == "events" else "")
    held = "bool_or(h.part IS NOT NULL)" if division.join else "false"
    connection.execute(
        f"""CREATE TABLE rows AS
        SELECT e.user, e.item, CAST({division.part} AS TINYINT) AS part, min(e.category) AS category, min(e.time) AS time,
               bit_or(1 << e.behaviour) AS seen, {held} AS held
        FROM events e {division.join} WHERE {wanted} GROUP BY {key}"""
    )
    connection.execute("DROP TABLE events")
