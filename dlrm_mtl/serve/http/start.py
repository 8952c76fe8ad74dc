"""Start of the server from the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import parse_size
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.serve.follow.calibration import calibration_of
from dlrm_mtl.serve.follow.source import FollowedVersions
from dlrm_mtl.serve.http.limits import ServerLimits
from dlrm_mtl.serve.http.options import ServerOptions
from dlrm_mtl.serve.http.source import LocalBundles, ScorerFactory, VersionSource
from dlrm_mtl.serve.http.supervisor import serve
from dlrm_mtl.serve.score_file import policies_of


def source_of(
    bundle: str | None,
    follow: str | None,
    cache: Path | None,
    watch: bool,
    missing: Sequence[str],
    unknown: Sequence[str],
    raw_rows: bool,
    plugins: Sequence[str],
    tables: str | None = None,
    calibration: Path | None = None,
) -> VersionSource:
    """Place that a server takes its model from; see ``dlrm-mtl serve --help``.

    Raises:
        UserError: the options name no place, or two, or there is no bundle in it.
    """
    factory = ScorerFactory(
        policies_of(missing, "--missing"),
        policies_of(unknown, "--unknown"),
        tuple(plugins),
        "raw" if raw_rows else "prepared",
    )
    if follow is not None:
        if bundle is not None or watch:
            raise UserError(f"--follow {follow}: takes the place of a bundle and of --watch; leave them out.")
        format = cast(FormatName, tables or "fp32")
        maps = None if calibration is None else calibration_of(calibration, plugins)
        return FollowedVersions(follow, factory, cache, plugins, format, maps)
    if bundle is None or cache is not None:
        raise UserError(
            "serve: name a bundle, or the folder of published versions with --follow; --cache goes with it."
        )
    if tables is not None:
        raise UserError(
            f"--tables {tables}: goes with --follow; the tables of a bundle are in the format of its export."
        )
    if calibration is not None:
        raise UserError(f"--calibration {calibration}: goes with --follow; a bundle has the calibration of its export.")
    if "://" in bundle:
        raise UserError(f"{bundle}: a bundle is served from a local folder; copy it to this machine.")
    source = LocalBundles(bundle, factory)
    if not watch and not source.versions():
        raise UserError(f"{bundle}: there is no bundle here yet; export one, or wait for it with --watch.")
    return source


def start_server(
    source: VersionSource,
    *,
    host: str,
    port: int,
    workers: int | None,
    threads: int,
    every: float | None,
    max_body: str,
    max_rows: int,
    queue: int,
    timeout: float,
    request_log: Path | None,
    log_share: float,
    slow_log: Path | None,
    slow_milliseconds: float,
    log_size: str,
) -> None:
    """Serve until SIGTERM or SIGINT; see ``dlrm-mtl serve --help``.

    Raises:
        UserError: an option does not fit, or there is no bundle that is fit for use.
    """
    limits = ServerLimits(body=_size(max_body, "--max-body"), rows=max_rows, queue=queue, timeout=timeout)
    options = ServerOptions(
        host,
        port,
        workers or available_cores(),
        threads,
        limits,
        every,
        request_log,
        log_share,
        slow_log,
        slow_milliseconds,
        _size(log_size, "--log-size"),
    )
    serve(source, options)


def _size(text: str, option: str) -> int:
    size = parse_size(text)
    if not size:
        raise UserError(f"{option} {text}: is no size; write one such as 16MiB or 1GB.")
    return size
