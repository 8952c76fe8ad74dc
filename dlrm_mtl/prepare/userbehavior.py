"""Taobao UserBehavior: a log of views, carts, favourites and purchases, to rows with one label per behaviour.

What an output row is. ``--rows pairs``: one row per user and item that occur together, with label 1 for every behaviour that
occurred at least once. ``--rows events``: one row per distinct event, with label 1 for its own behaviour and 0 for the others.
With ``--split time`` a pair is a row in every split in whose days it occurs. To every row ``--negatives`` (validation and test:
``--evaluation-negatives``) rows are added with the same user, a drawn item and all labels 0.

The random split holds out pairs of the target behaviour. Their other events go with them, as further labels of the held-out
row (leakage filter). Without the filter these events stay in training, where the pair's target label is null, and the
held-out row's other labels are null: a label never counts in two splits, nor a held-out purchase as a non-purchase.

Training rows come in random order, validation and test rows by user; columns: user, item, category (ids by frequency in
training, 0 for what training has not), user_id and item_id (as published), time (unix seconds, of the first event; null for a
negative), sampled (1 for a negative), labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import duckdb
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.sql import quote
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare import ehcf
from dlrm_mtl.prepare.common.duck import (
    SPLITS,
    Memory,
    Threads,
    find_files,
    insert_csv,
    one_row,
    workspace,
)
from dlrm_mtl.prepare.common.io import Progress, output_folder
from dlrm_mtl.prepare.common.k_core import k_core, part_of_event
from dlrm_mtl.prepare.common.preparation import refuse_empty
from dlrm_mtl.prepare.common.splits import random_split
from dlrm_mtl.prepare.common.user_item import RowFactory, RowOptions, number, write_rows

BEHAVIOURS = ("pv", "cart", "fav", "buy")
"""Behaviour number -> name; the order of the labels."""

DAY = 86400
FIRST_SECOND = 1511539200
"""2017-11-25 00:00 in China (UTC+8)."""
DAYS = 9
"""2017-11-25 to 2017-12-03."""

LICENCE = "published by Alibaba for research; see https://tianchi.aliyun.com/dataset/649"
CITATION = """\
Han Zhu, Xiang Li, Pengye Zhang, Guozheng Li, Jie He, Han Li, Kun Gai. Learning Tree-based Deep Model for Recommender Systems. \
KDD 2018. https://doi.org/10.1145/3219819.3219826. Data: User Behavior Data from Taobao for Recommendation, Alibaba."""


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
    if validation_share + test_share >= 1:
        raise UserError(
            f"prepare userbehavior: --validation-share {validation_share} and --test-share {test_share} leave nothing to "
            "train on; lower them."
        )
    seeing = [BEHAVIOURS.index(name) for name in names]
    goal = BEHAVIOURS.index(target)
    notes: list[str] = []
    with output_folder(output) as folder, workspace(folder, memory, threads) as connection:
        progress("reading", 0.0)
        if layout == "ehcf":
            ehcf.load(connection, input, names)
        else:
            _load(connection, find_files(input, ["UserBehavior*.csv"], "UserBehavior.csv"), notes)
        wanted = f"e.behaviour IN ({', '.join(map(str, seeing))})"
        if split == "time" or layout == "raw":
            wanted += f" AND e.time >= {FIRST_SECOND} AND e.time < {FIRST_SECOND + DAYS * DAY}"
        wanted = _filter(connection, wanted, goal, user_items, item_users, notes, progress)
        progress("splitting", 0.3)
        if split == "time":
            held, part, split_notes = "", _part_by_time(), _time_notes()
        else:
            _hold_out(connection, wanted, goal, validation_share, test_share, seed, given=layout == "ehcf")
            held = "LEFT JOIN held h ON h.user = e.user AND h.item = e.item"
            part = part_of_event(f"e.behaviour = {goal}", leakage_filter)
            split_notes = _random_notes(target, layout, validation_share, test_share, seed)
            if leakage_filter:
                removed = one_row(
                    connection,
                    f"""SELECT count(*) FROM events e JOIN held h USING (user, item)
                    WHERE {wanted} AND e.behaviour <> {goal}""",
                )[0]
                notes.append(f"leakage filter: {removed:,} other events of held-out pairs taken out of training")
        progress("grouping", 0.35)
        key = f"e.user, e.item, {part}" + (", e.time, e.behaviour" if rows == "events" else "")
        connection.execute(
            f"""CREATE TABLE rows AS
            SELECT e.user, e.item, CAST({part} AS TINYINT) AS part, min(e.category) AS category, min(e.time) AS time,
                   bit_or(1 << e.behaviour) AS seen, {"bool_or(h.part IS NOT NULL)" if held else "false"} AS held
            FROM events e {held} WHERE {wanted} GROUP BY {key}"""
        )
        connection.execute("DROP TABLE events")
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
        counts = write_rows(connection, folder, factory, progress)
        refuse_empty(dict(zip(SPLITS, counts, strict=True)), "raise its share, or loosen the filters")
        if factory.exhausted:
            notes.append(f"{factory.exhausted:,} negatives left out: the user knows every item")
        progress("describing", 0.95)
        connection.close()
        about = _about(rows, layout, names, target, notes, options)
        splits = {
            name: SplitSpec(folder=name, description=text) for name, text in zip(SPLITS, split_notes, strict=True)
        }
        describe(folder, _specification(sizes, names, splits, about, options.categories))
    progress("done", 1.0)


def _behaviours(text: str, target: str, available: tuple[str, ...]) -> list[str]:
    chosen = [name.strip() for name in text.split(",") if name.strip()] or list(available)
    for name in [*chosen, target]:
        if name not in available:
            raise UserError(f"prepare userbehavior: there is no behaviour {name!r}; {suggest(name, available)}.")
    if target not in chosen:
        raise UserError(f"prepare userbehavior: the target {target!r} is not among --behaviours {text}; add it.")
    return [name for name in BEHAVIOURS if name in chosen]


def _load(connection: duckdb.DuckDBPyConnection, paths: list[Path], notes: list[str]) -> None:
    columns = dict.fromkeys(("user", "item", "category"), "INTEGER") | {"behaviour": "VARCHAR", "time": "BIGINT"}
    known = ", ".join(quote(name) for name in BEHAVIOURS)
    number_of = f"coalesce(list_position([{known}], behaviour), 0) - 1"
    selected = f"user, item, category, CAST({number_of} AS TINYINT) AS behaviour, time"
    insert_csv(connection, "events", paths, columns, selected, options="header = false, delim = ',', quote = ''")
    outside = f"time < {FIRST_SECOND} OR time >= {FIRST_SECOND + DAYS * DAY}"
    total, strange, late, empty = one_row(
        connection,
        f"""SELECT count(*), count(*) FILTER (behaviour < 0), count(*) FILTER ({outside}),
        count(*) FILTER (user IS NULL OR item IS NULL OR category IS NULL OR time IS NULL) FROM events""",
    )
    if strange or empty:
        what = "a behaviour other than " + ", ".join(BEHAVIOURS) if strange else "an empty field"
        raise UserError(f"{paths[0]}: {strange or empty:,} rows have {what}; correct them or download the file again.")
    notes.append(f"{total:,} events read, of them {late:,} outside 2017-11-25 to 2017-12-03 (China) dropped")


def _filter(
    connection: duckdb.DuckDBPyConnection,
    wanted: str,
    goal: int,
    user_items: int,
    item_users: int,
    notes: list[str],
    progress: Progress,
) -> str:
    """Restrict ``wanted`` (SQL over events ``e``) to the users and items of the target's k-core, if one is asked for."""
    if user_items <= 1 and item_users <= 1:
        return wanted
    progress("k-core", 0.2)
    connection.execute(
        f"CREATE TABLE core AS SELECT DISTINCT user, item FROM events e WHERE {wanted} AND behaviour = {goal}"
    )
    rounds = k_core(
        connection,
        "core",
        user_items,
        item_users,
        lambda round, left: progress(f"k-core, round {round}: {left}", 0.2),
    )
    if rounds[-1].pairs == 0:
        raise UserError(
            f"prepare userbehavior: no pair is left with --user-items {user_items} --item-users {item_users}, of "
            f"{rounds[0].pairs:,} pairs of the target; lower them."
        )
    told = "; ".join(f"round {number}: {left}" for number, left in enumerate(rounds))
    notes.append(f"k-core of the target's pairs (users >= {user_items} items, items >= {item_users} users): {told}")
    return f"{wanted} AND e.user IN (SELECT user FROM core) AND e.item IN (SELECT item FROM core)"


def _hold_out(
    connection: duckdb.DuckDBPyConnection,
    wanted: str,
    goal: int,
    validation_share: float,
    test_share: float,
    seed: int,
    given: bool,
) -> None:
    """Make the table held (user, item, part): pairs of the target that are validation (1) or test (2).

    With ``given`` test pairs in the table given, validation pairs are drawn from the rest.
    """
    shares = {"1": validation_share} if given else {"1": validation_share, "2": test_share}
    drawn = random_split("e.user || ':' || e.item", {**shares, "0": 1 - sum(shares.values())}, seed=seed)
    known = " UNION ALL SELECT user, item, CAST(2 AS TINYINT) FROM given" if given else ""
    unknown = "AND NOT EXISTS (FROM given g WHERE g.user = e.user AND g.item = e.item)" if given else ""
    connection.execute(
        f"""CREATE TABLE held AS
        SELECT * FROM (SELECT DISTINCT e.user, e.item, CAST({drawn} AS TINYINT) AS part FROM events e
                       WHERE {wanted} AND e.behaviour = {goal} {unknown}) WHERE part > 0 {known}"""
    )


def _part_by_time() -> str:
    last = FIRST_SECOND + (DAYS - 1) * DAY
    return f"CASE WHEN e.time >= {last} THEN 2 WHEN e.time >= {last - DAY} THEN 1 ELSE 0 END"


def _time_notes() -> list[str]:
    return ["2017-11-25 to 2017-12-01 (China)", "2017-12-02 (China)", "2017-12-03 (China)"]


def _random_notes(target: str, layout: str, validation_share: float, test_share: float, seed: int) -> list[str]:
    test = "the published test pairs" if layout == "ehcf" else f"random {test_share:.0%}"
    return [
        f"all pairs but the held-out ones, with the rest of the pairs of {target}",
        f"pairs of {target}, random {validation_share:.0%}{' of the rest' if layout == 'ehcf' else ''}, seed {seed}",
        f"pairs of {target}, {test}",
    ]


def _about(rows: str, layout: str, names: list[str], target: str, notes: list[str], options: RowOptions) -> str:
    source = ehcf.SOURCE if layout == "ehcf" else "Taobao UserBehavior, 2017-11-25 to 2017-12-03"
    row = "user-item pair: 1 where the behaviour occurred" if rows == "pairs" else "event: 1 for its behaviour"
    kind = "uniformly" if options.exponent == 0 else f"by popularity to the power {options.exponent:g}"
    limit = "" if options.known_negatives else ", never an item that the user had something to do with"
    drawn = (
        f"negatives per row: {options.negatives[0]} in training, {options.negatives[1]} in validation and test, drawn "
        f"{kind}{limit}"
    )
    return f"{source}. Labels {', '.join(names)} per {row}; target {target}; {'; '.join([*notes, drawn])}."


def _specification(
    sizes: dict[str, int], names: list[str], splits: dict[str, SplitSpec], about: str, categories: bool
) -> DatasetSpec:
    features = ["user", "item", "category"] if categories else ["user", "item"]
    return DatasetSpec(
        name="userbehavior",
        description=about,
        licence=LICENCE,
        citation=CITATION if categories else f"{CITATION} Subset and test pairs: {ehcf.CITATION}",
        splits=splits,
        features=[FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name]) for name in features],
        labels=[LabelSpec(name=name) for name in names],
    )
