"""An object store for tests: a real server that speaks S3, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from pyarrow import fs


@contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """Serve an empty bucket, ``bucket``; yields the environment variables that lead clients there."""
    server = pytest.importorskip("moto.server", reason="moto[server], which plays the object store, is not installed")
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        url = f"http://{host}:{port}"
        urlopen(Request(f"{url}/moto-api/reset", method="POST"))  # what an earlier test left
        urlopen(Request(f"{url}/bucket", method="PUT"))
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        store.stop()


def client() -> fs.S3FileSystem:
    """A client of the store that the environment names, which may also make buckets."""
    return fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)


def upload(folder: Path, system: fs.S3FileSystem, to: str) -> None:
    """Copy a local folder."""
    fs.copy_files(str(folder), to, destination_filesystem=system)


def files(system: fs.S3FileSystem, folder: str) -> list[str]:
    """The files in ``folder`` and below, by their paths in it."""
    found = system.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path[len(folder) + 1 :] for info in found if info.type == fs.FileType.File)


def text(system: fs.S3FileSystem, path: str) -> str:
    """The content of a small file."""
    with system.open_input_stream(path) as stream:
        return bytes(stream.read()).decode()
