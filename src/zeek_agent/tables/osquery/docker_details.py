"""Docker's containers and images in detail: resources, changed files, steps and layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._docker import docker_table

if TYPE_CHECKING:
    from zeek_agent.host.docker import Docker

_CONTAINER: Final = Column("id", "text", "id of the container, or its beginning, as the statement has it")
_IMAGE: Final = Column("id", "text", "id of the image; a comparison with its beginning finds it too")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_CHANGES: Final = {0: "C", 1: "A", 2: "D"}

_STATS: Final = {
    "num_procs": ("num_procs", "0: only for Windows"),
    "cpu_total_usage": ("cpu_stats.cpu_usage.total_usage", "processor time in nanoseconds"),
    "cpu_kernelmode_usage": ("cpu_stats.cpu_usage.usage_in_kernelmode", "the same in the kernel"),
    "cpu_usermode_usage": ("cpu_stats.cpu_usage.usage_in_usermode", "the same outside of the kernel"),
    "system_cpu_usage": ("cpu_stats.system_cpu_usage", "processor time of the host in nanoseconds"),
    "online_cpus": ("cpu_stats.online_cpus", "processors"),
    "pre_cpu_total_usage": ("precpu_stats.cpu_usage.total_usage", "`cpu_total_usage` of the measurement before"),
    "pre_cpu_kernelmode_usage": ("precpu_stats.cpu_usage.usage_in_kernelmode", "the same in the kernel"),
    "pre_cpu_usermode_usage": ("precpu_stats.cpu_usage.usage_in_usermode", "the same outside of the kernel"),
    "pre_system_cpu_usage": ("precpu_stats.system_cpu_usage", "`system_cpu_usage` of the measurement before"),
    "pre_online_cpus": ("precpu_stats.online_cpus", "`online_cpus` of the measurement before"),
    "memory_usage": ("memory_stats.usage", "memory in bytes"),
    "memory_cached": ("memory_stats.stats.cache", "page cache in bytes; 0 with control groups of version 2"),
    "memory_inactive_file": ("memory_stats.stats.inactive_file", "inactive page cache in bytes"),
    "memory_total_inactive_file": ("memory_stats.stats.total_inactive_file", "the same with all groups below"),
    "memory_max_usage": ("memory_stats.max_usage", "most memory ever in bytes; 0 with version 2"),
    "memory_limit": ("memory_stats.limit", "limit of memory in bytes"),
}
"""By column: the member, and the column's summary."""


def _stats(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import ids, member, objects, text, whole

    for shown in ids(wanted.equal("id") or ()):
        found = docker.get(f"/containers/{shown}/stats", stream="false")
        if found is None:
            continue
        read, before = (_nanoseconds(text(found, name)) for name in ("read", "preread"))
        operations = objects(member(found, "blkio_stats.io_service_bytes_recursive"))
        networks = member(found, "networks")
        yield (
            shown,
            text(found, "name"),
            whole(found, "pids_stats.current"),
            read // 10**9,
            before // 10**9,
            read - before,
            *(
                sum(whole(one, "value") for one in operations if text(one, "op").lower() == kind)
                for kind in ("read", "write")
            ),
            *(whole(found, path) for path, _ in _STATS.values()),
            *(
                sum(whole(one, name) for one in networks.values()) if isinstance(networks, dict) else 0
                for name in ("rx_bytes", "tx_bytes")
            ),
        )


def _nanoseconds(timestamp: str) -> int:
    """Since 1970; 0 for anything but a time of RFC 3339 after that."""
    found = _TIME.fullmatch(timestamp)
    if found is None:
        return 0
    try:
        seconds = int(datetime.fromisoformat(f"{found[1]}+00:00").timestamp())
    except ValueError:
        return 0
    return max(seconds * 10**9 + int((found[2] or "").ljust(9, "0")), 0)


docker_container_stats = docker_table(
    "docker_container_stats",
    "resources that one of Docker's containers uses",
    _stats,
    description="One row per container whose id the statement has. Measuring one takes a second or two.",
    columns=[
        _CONTAINER,
        Column("name", "text", "its name, with a slash: `/web`"),
        Column("pids", "int", "processes and threads"),
        Column("read", "int", "when it was measured, in seconds since 1970"),
        Column("preread", "int", "when it was measured before that; 0 if it was not"),
        Column("interval", "int", "nanoseconds between the two"),
        Column("disk_read", "int", "bytes read from block devices"),
        Column("disk_write", "int", "bytes written to block devices"),
        *(Column(name, "int", summary) for name, (_, summary) in _STATS.items()),
        Column("network_rx_bytes", "int", "bytes received"),
        Column("network_tx_bytes", "int", "bytes sent"),
    ],
    required=["id"],
    examples=["SELECT name, memory_usage FROM docker_container_stats WHERE id = '172303cdf3a7'"],
)


def _changes(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import ids, member, text

    for shown in ids(wanted.equal("id") or ()):
        for change in docker.objects(f"/containers/{shown}/changes"):
            kind = member(change, "Kind")
            if type(kind) is int and kind in _CHANGES:
                yield shown, text(change, "Path"), _CHANGES[kind]


docker_container_fs_changes = docker_table(
    "docker_container_fs_changes",
    "files that differ from the image of one of Docker's containers",
    _changes,
    description="One row per file or directory.",
    columns=[
        _CONTAINER,
        Column("path", "text", "path in the container"),
        Column("change_type", "text", "`C` for changed, `A` for added, `D` for deleted"),
    ],
    required=["id"],
    examples=["SELECT path, change_type FROM docker_container_fs_changes WHERE id = '172303cdf3a7'"],
)


def _wanted_images(docker: Docker, wanted: Constraints) -> list[str]:
    """The ids of images that the statement has, or of all images."""
    from zeek_agent.host.docker import ids, plain_id, text

    values = wanted.equal("id")
    if values is not None:
        return ids(values)
    return ids(plain_id(text(image, "Id")) for image in docker.objects("/images/json"))


def _history(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import text, texts, whole

    for shown in _wanted_images(docker, wanted):
        for step in docker.objects(f"/images/{shown}/history"):
            yield (
                shown,
                whole(step, "Created"),
                whole(step, "Size"),
                wanted.context.access.masker.line(text(step, "CreatedBy")),
                ",".join(texts(step, "Tags")),
                text(step, "Comment"),
            )


docker_image_history = docker_table(
    "docker_image_history",
    "steps by which Docker's images were made",
    _history,
    description="One row per step of each image, the last one first. Secrets in commands are masked.",
    columns=[
        _IMAGE,
        Column("created", "int", "when it was made, in seconds since 1970"),
        Column("size", "int", "bytes that it added"),
        Column("created_by", "text", "command or instruction"),
        Column("tags", "text", "names with tags of what it made, joined by commas"),
        Column("comment", "text", "comment"),
    ],
    examples=["SELECT created_by, size FROM docker_image_history WHERE id = '6a2f32de169d'"],
)


def _layers(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import plain_id, texts

    for shown in _wanted_images(docker, wanted):
        found: Any = docker.get(f"/images/{shown}/json")
        for number, layer in enumerate(texts(found, "RootFS.Layers"), 1):
            yield shown, plain_id(layer), number


docker_image_layers = docker_table(
    "docker_image_layers",
    "layers of Docker's images",
    _layers,
    description="One row per layer of each image.",
    columns=[
        _IMAGE,
        Column("layer_id", "text", "id of the layer", collation="nocase"),
        Column("layer_order", "int", "its number, from 1 at the bottom"),
    ],
    examples=["SELECT id, layer_id FROM docker_image_layers WHERE layer_order = 1"],
)

TABLES = (docker_container_stats, docker_container_fs_changes, docker_image_history, docker_image_layers)
