"""The report of ``dlrm-mtl doctor --distributed``: one table of hosts, and sentences on what was found."""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from dlrm_mtl.console import console, ranks_text
from dlrm_mtl.core.errors import EXIT_CODE, UserError
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.core.memory import memory_bytes
from dlrm_mtl.core.processes import Process, gather_objects, process_group
from dlrm_mtl.doctor import versions
from dlrm_mtl.job_check import network, paths

PATIENCE = 60.0
"""Seconds after which a process that stops or hangs is named, as in training."""
CLOCK_SECONDS = 1.0
"""Difference of clocks that is warned of."""


@dataclass(frozen=True)
class Member:
    """A process of the job, and its host."""

    host: str
    versions: dict[str, str]
    device: str
    threads: int
    cores: int
    memory: int


def check_job(inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
    """Check what a job needs between its processes; the first one prints. Every process must call this.

    Args:
        inputs: files or folders that all hosts must see alike, paths or URIs.
        outputs: folders that all hosts must share and be able to write to.

    Raises:
        UserError: on the first process: something is wrong, one line each.
    """
    with process_group(PATIENCE) as process:
        problems = _Check(process).run(inputs, outputs)
    if problems and process.is_main:
        raise UserError("\n".join(problems))
    if problems:
        raise SystemExit(EXIT_CODE)


class _Check:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.members = gather_objects(_this_member(process))
        self.hosts = [member.host for member in self.members]
        self.host = self.hosts[process.rank]
        self.ranks = {host: [rank for rank, at in enumerate(self.hosts) if at == host] for host in self.hosts}
        self.leads = self.ranks[self.host][0] == process.rank
        self.said: list[str] = []
        self.problems: list[str] = []

    def run(self, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
        self._compare_versions()
        enter_phase("the check of all-to-all and all-reduce")
        collectives = network.check_collectives(self.process)
        enter_phase("the comparison of clocks")
        leaders = [ranks[0] for ranks in self.ranks.values()]
        clocks = gather_objects(network.clock_offsets(self.process, leaders))[0]
        enter_phase("the measurement of pairs")
        pairs = network.measure_pairs(self.process)
        self._say_network(collectives, pairs)
        self._say_clocks(clocks)
        for check, places in ((paths.check_input, inputs), (paths.check_output, outputs)):
            for place in places:
                enter_phase(f"the check of {place}")
                seen, problem = check(place, self.host, self.leads)
                (self.problems if problem else self.said).append(problem or seen)
        self._say_threads()
        if self.process.is_main:
            out = console()
            out.print(self._table(clocks, pairs))
            for text in self.said:
                out.print(text)
            if not self.problems:
                out.print("All is well.")
        return self.problems

    def _compare_versions(self) -> None:
        for name in self.members[0].versions:
            found: dict[str, list[int]] = {}
            for rank, member in enumerate(self.members):
                found.setdefault(member.versions[name], []).append(rank)
            if len(found) > 1:
                each = ", ".join(f"{version} on {self._name(ranks)}" for version, ranks in found.items())
                self.problems.append(f"{name} differs between processes: {each}; install the same set on all hosts.")
        if not self.problems:
            shown = ", ".join(f"{name} {version}" for name, version in self.members[0].versions.items())
            self.said.append(f"versions: the same on all processes ({shown})")

    def _say_network(self, collectives: network.Collectives, pairs: Sequence[network.Pair]) -> None:
        if collectives.problem:
            self.problems.append(
                f"{collectives.problem}; test memory and network of its host, and update their drivers."
            )
        if not pairs:
            self.said.append("network: there is one process only, and no other to talk to")
            return
        count = len(self.members)
        self.said.append(
            f"collectives: right results on {count} processes; a process sends {_rate(collectives.all_to_all)} in an "
            f"all-to-all and {_rate(collectives.all_reduce)} in an all-reduce"
        )
        slowest = min(pairs, key=lambda pair: pair.bandwidth)
        typical = statistics.median(pair.bandwidth for pair in pairs)
        self.said.append(
            f"pairs: {len(pairs)} of {count * (count - 1) // 2} measured, {_rate(typical)} in the middle; the slowest is "
            f"{' and '.join(f'process {rank} ({self.hosts[rank]})' for rank in slowest.ranks)} with "
            f"{_rate(slowest.bandwidth)} and {slowest.latency * 1e3:.2f} ms"
        )
        found = network.slow_host(network.best_links(pairs, self.hosts))
        if found is None:
            return
        host, factor = found
        text = f"the slowest host is {host}, by a factor of {factor:.1f} compared with the others"
        if factor >= network.SLOW:
            self.problems.append(
                f"network: {text}; look at its cable, port and network card, and at who else uses them, or leave it out."
            )
        else:
            self.said.append(f"network: {text}")

    def _say_clocks(self, clocks: dict[int, float]) -> None:
        largest = max(clocks, key=lambda rank: abs(clocks[rank]))
        seconds = clocks[largest]
        if abs(seconds) > CLOCK_SECONDS:
            side = "ahead of" if seconds > 0 else "behind"
            self.said.append(
                f"warning: the clock of {self.hosts[largest]} is {abs(seconds):,.1f} seconds {side} that of {self.hosts[0]}, "
                "so that times in logs mislead and object stores may refuse requests; let chrony or ntpd set it"
            )
        elif len(clocks) > 1:
            self.said.append(f"clocks: within {abs(seconds):.3f} seconds of that of {self.hosts[0]}")

    def _say_threads(self) -> None:
        for host, ranks in self.ranks.items():
            member = self.members[ranks[0]]
            threads = sum(self.members[rank].threads for rank in ranks)
            share = member.cores // len(ranks)
            if threads > member.cores:
                remedy = f"set OMP_NUM_THREADS={share}" if share else "start fewer processes"
                self.said.append(
                    f"warning: {host} has {member.cores} cores for {threads} threads of {len(ranks)} processes; {remedy}"
                )

    def _table(self, clocks: dict[int, float], pairs: Sequence[network.Pair]) -> Table:
        best = network.best_links(pairs, self.hosts)
        table = Table(title="The hosts of the job", title_justify="left")
        for heading in ("host", "processes", "device", "cores", "threads", "memory", "clock", "network"):
            table.add_column(heading, justify="left" if heading in ("host", "processes", "device") else "right")
        for host, ranks in self.ranks.items():
            member = self.members[ranks[0]]
            table.add_row(
                host,
                ranks_text(ranks),
                member.device,
                str(member.cores),
                f"{len(ranks)} x {member.threads}",
                f"{member.memory / 2**30:,.1f} GiB",
                f"{clocks[ranks[0]]:+.3f} s",
                _rate(best[host]) if host in best else "-",
            )
        return table

    def _name(self, ranks: list[int]) -> str:
        hosts = ", ".join(dict.fromkeys(self.hosts[rank] for rank in ranks))
        return f"process{'es' * (len(ranks) > 1)} {ranks_text(ranks)} ({hosts})"


def _this_member(process: Process) -> Member:
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "cpu"
    cores = len(os.sched_getaffinity(0))
    return Member(socket.gethostname(), versions(), device, torch.get_num_threads(), cores, memory_bytes())


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 1e6:,.1f} MB/s" if bandwidth < 1e9 else f"{bandwidth / 1e9:,.1f} GB/s"
