"""Containers of Docker, and what belongs to each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.masking.text_rules import MASK
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._docker import containers, docker_table, labels_of
from zeek_agent.text import to_bytes

if TYPE_CHECKING:
    from zeek_agent.host.docker import Docker

_RUNNING: Final = "Without a comparison of `id`, only running containers are listed."
_ID: Final = Column("id", "text", "id of the container; a comparison with its beginning finds it too")
_INSPECTED: Final = frozenset(
    {
        *("pid", "path", "config_entrypoint", "started_at", "finished_at", "privileged", "security_options"),
        *("env_variables", "readonly_rootfs"),
    }
)
"""Columns that take a request for each container."""
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_NAMESPACE_COLUMNS: Final = tuple(f"{name}_namespace" for name in _NAMESPACES)
_NAMESPACE: Final = re.compile(r"[a-z]+:\[([0-9]+)\]")


def _containers(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import plain_id, text, texts, whole

    masker = wanted.context.access.masker
    for shown, one in containers(docker, wanted):
        details = docker.get(f"/containers/{shown}/json") if wanted.needs(*_INSPECTED, *_NAMESPACE_COLUMNS) else None
        yield (
            shown,
            next(iter(texts(one, "Names")), None),
            text(one, "Image"),
            plain_id(text(one, "ImageID")),
            masker.line(text(one, "Command")),
            whole(one, "Created"),
            text(one, "State"),
            text(one, "Status"),
            *_details(details, wanted, running=text(one, "State") == "running"),
            *(None for _ in _NAMESPACES),  # see `_with_namespaces`
        )


def _details(details: Any, wanted: Constraints, *, running: bool) -> Row:
    """From `pid` to `readonly_rootfs`; null for a container that is gone."""
    from zeek_agent.host.docker import flag, member, text, texts, whole

    if details is None:
        return (None,) * len(_INSPECTED)
    entrypoint = b"".join(to_bytes(one).replace(b"\0", b" ") + b"\0" for one in texts(details, "Config.Entrypoint"))
    masked = wanted.context.access.masker.command_line(entrypoint).arguments
    return (
        whole(details, "State.Pid") if member(details, "State.Pid") is not None else -1,
        text(details, "Path"),
        masked.replace("\0", ", "),
        text(details, "State.StartedAt"),
        "" if running else text(details, "State.FinishedAt"),
        flag(details, "HostConfig.Privileged"),
        ", ".join(texts(details, "HostConfig.SecurityOpt")),
        MASK if texts(details, "Config.Env") else "",
        flag(details, "HostConfig.ReadonlyRootfs"),
    )


docker_containers = docker_table(
    "docker_containers",
    "containers of Docker",
    _containers,
    description=f"One row per container. {_RUNNING} Secrets in command lines are masked.",
    columns=[
        _ID,
        Column("name", "text", "its first name, with a slash: `/web`"),
        Column("image", "text", "name of its image"),
        Column("image_id", "text", "id of its image", collation="nocase"),
        Column("command", "text", "command with arguments"),
        Column("created", "int", "when it was created, in seconds since 1970"),
        Column("state", "text", "`created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`"),
        Column("status", "text", "the state for people, such as `Up 2 hours`"),
        Column("pid", "int", "its first process; 0 if it does not run"),
        Column("path", "text", "program that it runs"),
        Column("config_entrypoint", "text", "entry point, joined by a comma and a blank"),
        Column("started_at", "text", "when it was started last, such as `2026-11-29T09:27:52.12345Z`"),
        Column("finished_at", "text", "when it ended last; empty while it runs"),
        Column("privileged", "int", "1 if it is privileged"),
        Column("security_options", "text", "security options, joined by a comma and a blank"),
        Column("env_variables", "text", f"`{MASK}` if it has environment variables, which may be secrets"),
        Column("readonly_rootfs", "int", "1 if its root file system is mounted read-only"),
        *(
            Column(f"{name}_namespace", "text", f"inode number of its {name} namespace; null if it does not run")
            for name in _NAMESPACES
        ),
    ],
    examples=[
        "SELECT id, name, image, privileged FROM docker_containers",
        "SELECT name, status FROM docker_containers WHERE id = '172303cdf3a7'",
    ],
)


@docker_containers.completion
def _with_namespaces(rows: Iterable[Row], wanted: Constraints) -> Iterable[Row]:
    """Only the process of the statement may read the namespaces of other users' processes."""
    if not wanted.needs(*_NAMESPACE_COLUMNS):
        return rows
    place = next(number for number, column in enumerate(docker_containers.columns) if column.name == "pid")
    known = -len(_NAMESPACES)
    return ((*row[:known], *_namespaces_of(row[place], wanted.context.proc)) for row in rows)


def _namespaces_of(pid: object, proc: str) -> Iterator[str | None]:
    for name in _NAMESPACES:
        try:
            link = str(Path(proc, str(pid), "ns", name).readlink()) if type(pid) is int and pid > 0 else ""
        except OSError:
            link = ""  # it has ended
        found = _NAMESPACE.fullmatch(link)
        yield None if found is None else found[1]


docker_container_labels = docker_table(
    "docker_container_labels",
    "labels of Docker's containers",
    lambda docker, wanted: labels_of(containers(docker, wanted)),
    description=f"One row per label of each container. {_RUNNING}",
    columns=[_ID, Column("key", "text", "name of the label"), Column("value", "text", "its value")],
    examples=["SELECT id, key, value FROM docker_container_labels"],
)


def _mounts(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import flag, member, objects, text

    names = ("Type", "Name", "Source", "Destination", "Driver", "Mode")
    for shown, one in containers(docker, wanted):
        for mount in objects(member(one, "Mounts")):
            yield shown, *(text(mount, name) for name in names), flag(mount, "RW"), text(mount, "Propagation")


docker_container_mounts = docker_table(
    "docker_container_mounts",
    "what is mounted in Docker's containers",
    _mounts,
    description=f"One row per mount of each container. {_RUNNING}",
    columns=[
        _ID,
        Column("type", "text", "`bind`, `volume`, `tmpfs`, …"),
        Column("name", "text", "name of the volume; empty for other types"),
        Column("source", "text", "path on the host"),
        Column("destination", "text", "path in the container"),
        Column("driver", "text", "driver of the volume; empty for other types"),
        Column("mode", "text", "options, such as `ro`"),
        Column("rw", "int", "1 if it is writable"),
        Column("propagation", "text", "propagation of mounts, such as `rprivate`"),
    ],
    examples=["SELECT id, source, destination FROM docker_container_mounts WHERE type = 'bind' AND rw = 1"],
)


def _networks(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import member, text, whole

    for shown, one in containers(docker, wanted):
        networks = member(one, "NetworkSettings.Networks")
        for name, network in networks.items() if isinstance(networks, dict) else ():
            yield (
                shown,
                name,
                text(network, "NetworkID"),
                text(network, "EndpointID"),
                text(network, "Gateway"),
                text(network, "IPAddress"),
                whole(network, "IPPrefixLen"),
                text(network, "IPv6Gateway"),
                text(network, "GlobalIPv6Address"),
                whole(network, "GlobalIPv6PrefixLen"),
                text(network, "MacAddress"),
            )


docker_container_networks = docker_table(
    "docker_container_networks",
    "networks of Docker's containers",
    _networks,
    description=f"One row per network of each container. {_RUNNING}",
    columns=[
        _ID,
        Column("name", "text", "name of the network"),
        Column("network_id", "text", "id of the network", collation="nocase"),
        Column("endpoint_id", "text", "id of the container's end", collation="nocase"),
        Column("gateway", "text", "IPv4 gateway"),
        Column("ip_address", "text", "IPv4 address"),
        Column("ip_prefix_len", "int", "length of its prefix"),
        Column("ipv6_gateway", "text", "IPv6 gateway"),
        Column("ipv6_address", "text", "global IPv6 address"),
        Column("ipv6_prefix_len", "int", "length of its prefix"),
        Column("mac_address", "text", "hardware address", collation="nocase"),
    ],
    examples=["SELECT id, name, ip_address FROM docker_container_networks"],
)


def _ports(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import member, objects, text, whole

    for shown, one in containers(docker, wanted):
        for port in objects(member(one, "Ports")):
            yield shown, text(port, "Type"), whole(port, "PrivatePort"), text(port, "IP"), whole(port, "PublicPort")


docker_container_ports = docker_table(
    "docker_container_ports",
    "ports of Docker's containers",
    _ports,
    description=f"One row per exposed port of each container. {_RUNNING}",
    columns=[
        _ID,
        Column("type", "text", "`tcp`, `udp` or `sctp`"),
        Column("port", "int", "port in the container"),
        Column("host_ip", "text", "address of the host on which it is published; empty if it is not"),
        Column("host_port", "int", "port of the host; 0 if it is not published"),
    ],
    examples=["SELECT id, port, host_ip, host_port FROM docker_container_ports WHERE host_port > 0"],
)

_PS: Final = (
    *("pid", "state", "uid", "gid", "euid", "egid", "suid", "sgid", "rss", "vsz", "etime", "ppid", "pgrp", "nlwp"),
    *("nice", "user", "time", "pcpu", "pmem"),
)
"""Columns of ps(1), before those of the program's name and the command line."""
_ELAPSED: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


def _processes(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import ids, member

    since_boot = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    for shown in ids(wanted.equal("id") or ()):
        top = docker.get(f"/containers/{shown}/top", ps_args=f"axwwo {','.join(_PS)},comm,cmd")
        found = member(top, "Processes")
        for cells in found if isinstance(found, list) else ():
            wanted.check()
            if isinstance(cells, list) and len(cells) == len(_PS) + 2 and all(isinstance(one, str) for one in cells):
                yield shown, *_process(dict(zip((*_PS, "comm", "cmd"), cells, strict=True)), since_boot, wanted)
            else:
                wanted.report(f"a process of container {shown} is left out: ps(1) has other columns")


def _process(ps: Mapping[str, str], since_boot: int, wanted: Constraints) -> Row:
    """From `pid` to `mem`."""
    elapsed = _ELAPSED.fullmatch(ps["etime"])
    days, hours, minutes, seconds = (int(part or 0) for part in elapsed.groups()) if elapsed else (0, 0, 0, 0)
    resident, total = _whole(ps["rss"]), _whole(ps["vsz"])
    return (
        _whole(ps["pid"]),
        ps["comm"],
        wanted.context.access.masker.line(ps["cmd"]),
        ps["state"],
        *(_whole(ps[name]) for name in ("uid", "gid", "euid", "egid", "suid", "sgid")),
        None,
        None if resident is None else resident * 1_000,
        None if total is None else total * 1_000,
        since_boot - (((days * 24 + hours) * 60 + minutes) * 60 + seconds) if elapsed else None,
        *(_whole(ps[name]) for name in ("ppid", "pgrp", "nlwp", "nice")),
        ps["user"],
        ps["time"],
        _real(ps["pcpu"]),
        _real(ps["pmem"]),
    )


def _whole(number: str) -> int | None:
    return int(number) if re.fullmatch(r"-?[0-9]{1,15}", number) else None


def _real(number: str) -> float | None:
    return float(number) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", number) else None


docker_container_processes = docker_table(
    "docker_container_processes",
    "processes of one of Docker's containers",
    _processes,
    description="One row per process, from ps(1), which the engine runs. Secrets in command lines are masked.",
    columns=[
        _ID,
        Column("pid", "int", "process id on the host"),
        Column("name", "text", "name of the program"),
        Column("cmdline", "text", "command line"),
        Column("state", "text", "state, such as `S`"),
        Column("uid", "int", "real user id"),
        Column("gid", "int", "real group id"),
        Column("euid", "int", "effective user id"),
        Column("egid", "int", "effective group id"),
        Column("suid", "int", "saved user id"),
        Column("sgid", "int", "saved group id"),
        Column("wired_size", "int", "always null"),
        Column("resident_size", "int", "resident memory: 1,000 for each KiB, as in osquery"),
        Column("total_size", "int", "virtual memory, likewise"),
        Column("start_time", "int", "when it started, in seconds since boot, to a second or two"),
        Column("parent", "int", "process id of its parent"),
        Column("pgroup", "int", "process group"),
        Column("threads", "int", "number of threads"),
        Column("nice", "int", "nice value"),
        Column("user", "text", "name of the user on the host"),
        Column("time", "text", "processor time, as `[DD-]HH:MM:SS`"),
        Column("cpu", "real", "processor time per time since its start, in percent"),
        Column("mem", "real", "resident memory in percent of the host's"),
    ],
    required=["id"],
    examples=["SELECT pid, name, cmdline FROM docker_container_processes WHERE id = '172303cdf3a7'"],
)

TABLES = (
    docker_containers,
    docker_container_labels,
    docker_container_mounts,
    docker_container_networks,
    docker_container_ports,
    docker_container_processes,
)
