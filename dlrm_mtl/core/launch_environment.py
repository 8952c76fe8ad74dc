"""Environment variables of launchers and network libraries, checked before use."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from dlrm_mtl.core.errors import UserError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets on every process and torch.distributed reads."""
SIGNS = (*REQUIRED, "LOCAL_RANK")
"""Variables that a launcher sets; any of them shows that one started this process."""
REMEDY = "start all processes with torchrun, or unset it to use one process"


def check_launch_environment(
    environment: Mapping[str, str] | None = None, interfaces: Sequence[str] | None = None
) -> bool:
    """Check the variables of the launcher and the user; return True if a launcher started this process.

    Args:
        environment: default: that of this process.
        interfaces: names of this host's network interfaces; looked up by default.

    Raises:
        UserError: some variables are missing, are not numbers, contradict each other, or name an unknown host or network
            interface.
    """
    found = os.environ if environment is None else environment
    _check_interfaces(found, [name for _, name in socket.if_nameindex()] if interfaces is None else interfaces)
    there = [name for name in SIGNS if found.get(name)]
    if not there:
        return False
    missing = [name for name in REQUIRED if not found.get(name)]
    if missing:
        raise _mistake(
            there[0], found, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set beside it"
        )
    for name in NUMBERS:
        value = found.get(name)
        if value is not None and not value.isdecimal():
            raise _mistake(name, found, "it must be a whole number of at least 0")
    _check_below("RANK", "WORLD_SIZE", found)
    _check_below("LOCAL_RANK", "LOCAL_WORLD_SIZE", found)
    port = int(found["MASTER_PORT"])
    if not 0 < port < 65536:
        raise _mistake("MASTER_PORT", found, "it must be between 1 and 65535")
    try:
        socket.getaddrinfo(found["MASTER_ADDR"], port)
    except (OSError, UnicodeError):
        raise _mistake("MASTER_ADDR", found, "no host has this name") from None
    return True


def _check_below(name: str, limit: str, found: Mapping[str, str]) -> None:
    if found.get(name) and found.get(limit) and int(found[name]) >= int(found[limit]):
        raise _mistake(name, found, f"it must be below {limit}, which is {found[limit]}")


def _check_interfaces(found: Mapping[str, str], interfaces: Sequence[str]) -> None:
    """Refuse interface names that this host lacks. NCCL's are prefixes; ``=`` marks exact names, ``^`` excluded ones."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = found.get(name, "")
        exact = name.startswith("GLOO") or value.startswith("=")
        wanted = [part for part in value.removeprefix("=").split(",") if part]
        if not wanted or value.startswith("^"):
            continue
        if not any(own == part if exact else own.startswith(part) for own in interfaces for part in wanted):
            raise UserError(
                f"the environment: {name} is {value!r} and this host, {socket.gethostname()}, has {', '.join(interfaces)}; "
                "name one of these, or unset it.",
                local=True,
            )


def _mistake(name: str, found: Mapping[str, str], reason: str) -> UserError:
    return UserError(f"the environment: {name} is {found.get(name)!r} and {reason}; {REMEDY}.", local=True)
