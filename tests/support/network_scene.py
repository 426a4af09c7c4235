"""A network namespace with interfaces, addresses, routes and neighbors, and what the tables and ip(8) say about it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from asking import READS_ALL

from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.table import TableContext
from zeek_agent.tables.osquery import network

SCENE = """
set -e
mount -t sysfs none /sys
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
ip link add d0 type veth peer name d1 && ip link set d1 up
ip link set d0 address 02:00:00:00:00:01 mtu 1400 promisc on up
ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up
ip link add br0 type bridge
ip tuntap add t0 mode tun && ip link set t0 up
ip address add 10.1.0.1/24 broadcast 10.1.0.255 dev d0
ip address add 10.2.0.1/16 dev d0 label d0:alias
ip address add 10.3.0.1 peer 10.3.0.2/32 dev d0
ip address add fd00:1::1/64 dev d0 nodad
ip address add fd00:2::1 peer fd00:2::2/128 dev d0 nodad
ip address add 10.9.9.1 peer 10.9.9.2 dev t0
ip route add default via 10.1.0.254 metric 77
ip route add 10.50.0.0/16 via 10.1.0.253 dev d0 mtu 1300 hoplimit 9 src 10.1.0.1
ip route add 10.51.0.0/16 table 100 dev d0
ip route add 10.52.0.1/32 nexthop via 10.1.0.2 nexthop via 10.1.0.3
ip route add blackhole 10.53.0.0/24
ip route add unreachable 10.54.0.0/24 metric 4294967295
ip -6 route add default via fd00:1::ff metric 1024
ip -6 route add fd00:50::/48 via fd00:1::ff mtu 1280
ip neigh add 10.1.0.5 lladdr 02:00:00:00:00:AA dev d0 nud permanent
ip neigh add 10.1.0.6 lladdr 02:00:00:00:00:06 dev d0 nud reachable
ip neigh add fd00:1::5 lladdr 02:00:00:00:00:07 dev d0 nud permanent
echo counted > /dev/tcp/127.0.0.1/9 || true
for turn in $(seq 100); do
    test -z "$(ip -6 address show tentative)" && break
    sleep 0.05
done
"""
"""Without the detection of duplicate addresses, which would add addresses and routes while the test compares."""


def scene() -> dict[str, Any]:
    """Runs this module in a new network namespace. Raises CalledProcessError."""
    script = f'{SCENE}\nexec "{sys.executable}" "{Path(__file__)}"'
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        ["unshare", "--mount", "--net", "bash", "-c", script],
        capture_output=True, check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": paths},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


async def _tables() -> dict[str, list[dict[str, Any]]]:
    db = Database(network.TABLES, TableContext(NoAgent(), READS_ALL), LimitSettings())
    found = {}
    for table in network.TABLES:
        result = await db.query(f"SELECT * FROM {table.name}")
        assert result.errors == ()
        found[table.name] = [
            dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows
        ]
    await db.aclose()
    return found


def _ip(*arguments: str) -> Any:
    return json.loads(subprocess.run(["ip", "-j", *arguments], capture_output=True, check=True).stdout)


if __name__ == "__main__":
    before = _ip("-d", "-s", "link")
    tables = asyncio.run(_tables())
    listed = ("-d", "route", "show", "table", "all")
    described = {
        "before": before,
        "links": _ip("-d", "-s", "link"),
        "addresses": _ip("address"),
        "ip_routes": _ip("-4", *listed) + _ip("-6", *listed),
        "neighbors": _ip("neigh", "show", "nud", "all"),
        "flags": {path.parent.name: int(path.read_text(), 16) for path in Path("/sys/class/net").glob("*/flags")},
    }
    sys.stdout.write(json.dumps({**described, **tables}))
