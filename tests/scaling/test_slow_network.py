"""A link of limited rate between two processes, as the scaling benchmark makes it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from benchmarks.scaling_measured import slow_network


def test_what_the_link_is_and_that_nothing_is_left_of_it() -> None:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("network namespaces need the rights of root, ip and tc")
    before = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    try:
        with slow_network("100mbit", 2) as places:
            for command, variables in places:
                device = variables["GLOO_SOCKET_IFNAME"]
                shown = subprocess.run(
                    [*command, "tc", "qdisc", "show", "dev", device], capture_output=True, text=True, check=True
                ).stdout
                assert "rate 100Mbit" in shown
    except SystemExit as refused:
        pytest.skip(str(refused))  # a container without the capability
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout == before


def test_it_joins_two_processes() -> None:
    with pytest.raises(SystemExit, match="joins two processes"), slow_network("100mbit", 1):
        pass
