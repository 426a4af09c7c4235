"""Hosts on a wire that a Zeek sees, as network namespaces; their connections, and how a conn.log attributes these."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from places import SUPPORT

LOAD: Final = SUPPORT / "hosts_load.py"
NUMBERS: Final = range(1, 5)
WIRE: Final = "10.93.0.0/24"
HUB: Final = "10.93.0.1"
_SET_UP: Final = """
set -e
ip netns add $1-hub
ip -n $1-hub link set lo up
ip -n $1-hub link add wire type bridge
ip -n $1-hub address add 10.93.0.1/24 dev wire
ip -n $1-hub link set wire up
for n in 1 2 3 4; do
    ip netns add $1-$n
    ip -n $1-$n link set lo up
    ip -n $1-hub link add port$n type veth peer name eth0 netns $1-$n
    ip -n $1-hub link set port$n master wire up
    ip -n $1-$n address add 10.93.0.1$n/24 dev eth0
    ip -n $1-$n link set eth0 up
done
"""


@dataclass(frozen=True)
class Hosts:
    """Four hosts on a bridge of a hub, which has Zeek, the bus and the gateways."""

    name: str

    def at(self, place: int | str) -> tuple[str, ...]:
        """The beginning of a command that runs at a host, by its number, or at the hub."""
        return ("nsenter", f"--net=/run/netns/{self.name}-{place}")

    async def connections(self, number: int, rate: float = 100.0) -> list[dict[str, Any]]:
        """Have the hosts connect with each other, so often by TCP and by UDP; the truth about that."""
        hosts = [f"{self.name}-{n}=10.93.0.1{n}" for n in NUMBERS]
        command = [sys.executable, str(LOAD), str(number), str(number), str(rate), *hosts]
        load = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await load.communicate()
        assert load.returncode == 0
        return [json.loads(line) for line in output.splitlines()]


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Skips the test where namespaces cannot be made."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs ip (iproute2) and nsenter (util-linux)")
    name = f"zb{os.getpid()}"
    try:
        subprocess.run(["sh", "-c", _SET_UP, "sh", name], check=True)
        yield Hosts(name)
    finally:
        for place in ("hub", *NUMBERS):
            subprocess.run(["ip", "netns", "delete", f"{name}-{place}"], check=False)


@dataclass
class Score:
    """Of the true connections: how many Zeek logged, and with the right process and agent at both ends.

    Those without a process at an end are `missed`; those with another one than the true one are `wrong`.
    """

    seen: int = 0
    tagged: int = 0
    missed: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[tuple[dict[str, Any], Mapping[str, Any]]] = field(default_factory=list)


def compare(truth: Sequence[dict[str, Any]], conn_log: Sequence[Mapping[str, Any]]) -> Score:
    """Ends that were used twice, which may be one connection to Zeek, are left out."""
    lines = {_ends(line["id.orig_h"], line["id.orig_p"], line["id.resp_p"], line["proto"]): line for line in conn_log}
    times = Counter(_ends(one["orig_h"], one["orig_p"], one["resp_p"], one["proto"]) for one in truth)
    score = Score()
    for one in truth:
        ends = _ends(one["orig_h"], one["orig_p"], one["resp_p"], one["proto"])
        line = lines.get(ends)
        if line is None or times[ends] > 1:
            continue
        score.seen += 1
        true = [f"Host{one[f'{end}_h'][-1]}" for end in ("orig", "resp")] + [one["orig_pid"], one["resp_pid"]]
        found = [line["orig_hid"], line["resp_hid"], line["orig_pid"], line["resp_pid"]]
        score.tagged += found == true
        if any(mine not in (None, its) for mine, its in zip(found, true, strict=True)):
            score.wrong.append((one, line))
        elif found != true:
            score.missed.append(one)
    return score


def _ends(*ends: object) -> tuple[str, ...]:
    return tuple(map(str, ends))
