"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import Plugins, PolicyOption


def serve(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="The folder that `export` wrote, a link to it, or a folder of such folders, of which the last by name is "
            "served.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one, which is printed.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all, as in a container. There is no access control.")
    ] = "127.0.0.1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that score. Default: the number of cores.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a worker that compute one request.")] = 1,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go over to a new bundle, or another target of the link, when it is there.")
    ] = False,
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="VERSIONS",
            help="In place of a bundle: the folder of a run's training.publish.to, path or URI; the newest version is served, "
            "and the next ones as they are published.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="With --follow: folder of this machine for versions. Default: one in ~/.cache/dlrm-mtl.",
            show_default=False,
        ),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(
            help="With --follow: format of the tables, `fp32`, `fp16`, `int8` or `int4`. Default: fp32.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="With --follow: bundle that `export --calibrate` wrote of the same run; its maps are applied. Default: none.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, metavar="SECONDS", help="With --watch and --follow: seconds between two looks."
        ),
    ] = 5.0,
    missing: PolicyOption = None,
    unknown: PolicyOption = None,
    raw_rows: Annotated[
        bool, typer.Option("--raw-rows", help="Rows are raw: prepare them as the run's data set was prepared.")
    ] = False,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request.")] = "16MiB",
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows or candidates of a request.")] = 10_000,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that wait in a worker; one more is answered with 503.")
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Time for a request's body, for its scores, and for the end."),
    ] = 10.0,
    request_log: Annotated[
        Path | None,
        typer.Option(help="File for requests and their scores, as JSON lines; only its owner can read it."),
    ] = None,
    log_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests that is written to --request-log.")
    ] = 0.01,
    slow_log: Annotated[Path | None, typer.Option(help="File for slow requests, in the same form.")] = None,
    slow_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds from which on a request is written to --slow-log.")
    ] = 100.0,
    log_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Size at which a log becomes FILE.1, and another one begins.")
    ] = "1GiB",
    plugins: Plugins = None,
) -> None:
    """Serve a bundle over HTTP: JSON and Arrow, metrics for Prometheus, several processes on one copy of the tables.

    POST /v1/score takes {"rows": [{...}, ...]}, POST /v1/rank {"context": {...}, "candidates": [{...}, ...], "top": 10}. GET
    /v1/model lists the fields of a row, /healthz and /readyz are for probes,
    /metrics is for Prometheus. SIGTERM lets requests finish. Press Ctrl-C to end.
    """
    from dlrm_mtl.serve.http.start import source_of, start_server

    start_server(
        source_of(
            bundle, follow, cache, watch, missing or [], unknown or [], raw_rows, plugins or [], tables, calibration
        ),
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        every=every if watch or follow else None,
        max_body=max_body,
        max_rows=max_rows,
        queue=queue,
        timeout=timeout,
        request_log=request_log,
        log_share=log_share,
        slow_log=slow_log,
        slow_milliseconds=slow_ms,
        log_size=log_size,
    )
