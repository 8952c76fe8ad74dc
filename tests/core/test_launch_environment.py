"""Environments that launchers leave half set."""

from __future__ import annotations

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.launch_environment import check_launch_environment

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
INTERFACES = ["lo", "eth0"]


def test_a_whole_environment_and_an_empty_one_are_fine() -> None:
    assert check_launch_environment(WHOLE, INTERFACES)
    assert not check_launch_environment({}, INTERFACES)
    assert not check_launch_environment({"RANK": "", "GLOO_SOCKET_IFNAME": "eth0"}, INTERFACES)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"])
def test_one_variable_alone_is_a_sentence(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"the environment: {name} is '{WHOLE[name]}' and .* not set beside it; start all"
    ):
        check_launch_environment({name: WHOLE[name]}, INTERFACES)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_one_variable_missing_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is not set beside it"):
        check_launch_environment({key: value for key, value in WHOLE.items() if key != name}, INTERFACES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "one"}, "RANK is 'one' and it must be a whole number"),
        ({"RANK": "-1"}, "RANK is '-1' and it must be a whole number"),
        ({"RANK": "2"}, "RANK is '2' and it must be below WORLD_SIZE, which is 2"),
        ({"LOCAL_RANK": "5"}, "LOCAL_RANK is '5' and it must be below LOCAL_WORLD_SIZE, which is 2"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000' and it must be between 1 and 65535"),
        ({"MASTER_ADDR": "no such host"}, "MASTER_ADDR is 'no such host' and no host has this name"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, r"GLOO_SOCKET_IFNAME is 'ib0' and this host, .*, has lo, eth0"),
        ({"GLOO_SOCKET_IFNAME": "eth"}, "GLOO_SOCKET_IFNAME is 'eth'"),
        ({"NCCL_SOCKET_IFNAME": "ib"}, "NCCL_SOCKET_IFNAME is 'ib'"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "NCCL_SOCKET_IFNAME is '=eth'"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_launch_environment({**WHOLE, **change}, INTERFACES)


@pytest.mark.parametrize("value", ["eth", "=eth0", "^docker", "ib,eth"])
def test_the_forms_of_nccl_interfaces(value: str) -> None:
    assert check_launch_environment({**WHOLE, "NCCL_SOCKET_IFNAME": value}, INTERFACES)
