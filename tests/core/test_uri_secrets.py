"""Secrets in URIs: refused everywhere, shown nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.uri_secrets import refuse_secrets
from dlrm_mtl.storage.filesystems import locate
from tests import commands, synthetic

SECRET = "wJalr/K7MDENG+bPx=RfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "place", ["s3://AKIA:{}@bucket/data", "hdfs://me:{}@host:9000/x", "gs://a:{}@b", "--o=s3://K:{}@b/c@d"]
)
def test_secrets_are_refused_and_not_shown(place: str) -> None:
    with pytest.raises(UserError, match="holds a secret") as raised:
        refuse_secrets(place.format(SECRET))
    assert not any(part in str(raised.value) for part in (SECRET, "wJalr", "RfiCY", "MDENG"))
    assert "://***@" in str(raised.value)


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/a:b@c",
        "hdfs://host:9000/a@b",
        "gs://anonymous@bucket/x",
        "s3://bucket/x?endpoint_override=localhost:9000&scheme=http",
        "file:///tmp/a:b@c",
        "runs/a:b@c",
        "C:/data",
    ],
)
def test_other_places_are_not(place: str) -> None:
    refuse_secrets(place)


def test_every_way_in(tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    uri = f"s3://AKIA:{SECRET}@bucket/data"
    config = commands.write_config(tmp_path / "run.yaml", synthetic.config(Path("data")))
    written = tmp_path / "uri.yaml"
    written.write_text(config.read_text().replace("path: data", f"path: {uri}"))
    assert uri in written.read_text()
    for arguments in (
        ("config", "check", written),
        ("config", "check", config, "--set", f"data.path={uri}"),
        ("train", config, "--output", uri),
        ("predict", uri, "--input", "x", "--output", "y"),
        ("data", "describe", uri),
        ("checkpoint", "list", uri),
        ("init", uri),
    ):
        code, said = call(*arguments)
        assert code == 2, arguments
        assert "holds a secret" in said
        assert "wJalr" not in said
    for use in (lambda: locate(uri), lambda: dlrm_mtl.open_run(uri), lambda: dlrm_mtl.open_dataset(uri)):
        with pytest.raises(UserError, match="holds a secret"):
            use()
