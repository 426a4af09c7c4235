"""Load, memory, processor time, and limits of resources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zeek_agent.host.linux import machine
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

_MEMORY: Final = {
    "memory_total": ("MemTotal", "bytes of memory"),
    "memory_free": ("MemFree", "bytes that nothing uses"),
    "memory_available": ("MemAvailable", "bytes that new programs can have without swapping"),
    "buffers": ("Buffers", "bytes of buffers for block devices"),
    "cached": ("Cached", "bytes of the page cache"),
    "swap_cached": ("SwapCached", "bytes both in memory and in swap areas"),
    "active": ("Active", "bytes used recently"),
    "inactive": ("Inactive", "bytes not used recently"),
    "swap_total": ("SwapTotal", "bytes of swap areas"),
    "swap_free": ("SwapFree", "bytes of them that are free"),
}
"""By column, the name in /proc/meminfo and the meaning."""
_TIMES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_LIMITS: Final = {
    "as": "Max address space",
    "core": "Max core file size",
    "cpu": "Max cpu time",
    "data": "Max data size",
    "fsize": "Max file size",
    "locks": "Max file locks",
    "memlock": "Max locked memory",
    "msgqueue": "Max msgqueue size",
    "nice": "Max nice priority",
    "nofile": "Max open files",
    "nproc": "Max processes",
    "rss": "Max resident set",
    "rtprio": "Max realtime priority",
    "sigpending": "Max pending signals",
    "stack": "Max stack size",
}
"""By osquery's name, the one in /proc/PID/limits."""

load_average = osquery_table(
    "load_average",
    "load averages",
    description="Three rows, as uptime(1) shows them.",
    columns=[
        Column("period", "text", "`1m`, `5m` or `15m`"),
        Column("average", "text", "average number of runnable processes in that time, such as `0.420000`"),
    ],
    examples=["SELECT average FROM load_average WHERE period = '5m'"],
)

memory_info = osquery_table(
    "memory_info",
    "use of memory",
    description="One row, from /proc/meminfo.",
    columns=[Column(name, "int", meaning) for name, (_, meaning) in _MEMORY.items()],
    examples=["SELECT memory_total, memory_available FROM memory_info"],
)

cpu_time = osquery_table(
    "cpu_time",
    "time of processors since boot, by what they did",
    description="One row per processor, from /proc/stat. Times are in ticks, of which there are 100 in a second.",
    columns=[
        Column("core", "int", "number of the processor"),
        Column("user", "int", "programs of normal priority"),
        Column("nice", "int", "programs of lower priority"),
        Column("system", "int", "the kernel"),
        Column("idle", "int", "nothing"),
        Column("iowait", "int", "nothing, while something waited for a disk"),
        Column("irq", "int", "interrupts"),
        Column("softirq", "int", "deferred work of interrupts"),
        Column("steal", "int", "other virtual machines of the same computer"),
        Column("guest", "int", "virtual machines, which is also part of `user`"),
        Column("guest_nice", "int", "virtual machines of lower priority, which is also part of `nice`"),
    ],
    examples=["SELECT core, user + system AS busy, idle FROM cpu_time"],
)

ulimit_info = osquery_table(
    "ulimit_info",
    "limits of resources of the agent's main process",
    description="One row per limit (getrlimit(2)), in bytes, seconds or numbers.",
    columns=[
        Column("type", "text", "what is limited, such as `nofile`"),
        Column("soft_limit", "text", "the limit in force, or `unlimited`"),
        Column("hard_limit", "text", "what it can be raised to, or `unlimited`"),
    ],
    examples=["SELECT soft_limit, hard_limit FROM ulimit_info WHERE type = 'nofile'"],
)


@load_average.snapshot
def loads(wanted: Constraints) -> Iterator[Row]:
    for period, average in zip(("1m", "5m", "15m"), os.getloadavg(), strict=True):
        yield period, f"{average:.6f}"


@memory_info.snapshot
def memory(wanted: Constraints) -> Iterator[Row]:
    sizes = machine.meminfo()
    yield tuple(sizes.get(name) for name, _ in _MEMORY.values())


@cpu_time.snapshot
def times(wanted: Constraints) -> Iterator[Row]:
    for core, *ticks in machine.processor_ticks():
        yield core, *(ticks + [0] * len(_TIMES))[: len(_TIMES)]


@ulimit_info.snapshot
def limits(wanted: Constraints) -> Iterator[Row]:
    found = machine.resource_limits(wanted.context.agent.pid)
    for kind, name in _LIMITS.items():
        if name in found:
            yield kind, *found[name]


TABLES = (load_average, memory_info, cpu_time, ulimit_info)
