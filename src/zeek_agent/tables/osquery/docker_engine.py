"""Docker's engine: its version and state, images, networks and volumes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._docker import docker_table, labels_of, matching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zeek_agent.host.docker import Docker

_LABEL: Final = (Column("key", "text", "name of the label"), Column("value", "text", "its value"))
_FRACTION: Final = re.compile(r"\.[0-9]+")

_VERSION: Final = {
    "version": ("Version", "version of the engine", "version"),
    "api_version": ("ApiVersion", "version of its API", "version"),
    "min_api_version": ("MinAPIVersion", "least version of the API that it understands", "version"),
    "git_commit": ("GitCommit", "commit from which it was built", ""),
    "go_version": ("GoVersion", "Go with which it was built", "version"),
    "os": ("Os", "operating system", ""),
    "arch": ("Arch", "architecture", ""),
    "kernel_version": ("KernelVersion", "release of the kernel", "version"),
    "build_time": ("BuildTime", "when it was built", ""),
}
"""By column: the member, the column's summary and its collation."""


def _version(docker: Docker, _: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import text

    if (found := docker.get("/version")) is not None:
        yield [text(found, member) for member, _, _ in _VERSION.values()]


docker_version = docker_table(
    "docker_version",
    "version of Docker's engine",
    _version,
    description="One row.",
    columns=[Column(name, "text", summary, collation=collation) for name, (_, summary, collation) in _VERSION.items()],
    examples=["SELECT version, api_version FROM docker_version"],
)

_INFO: Final = {
    "id": ("ID", "text", "id of the engine"),
    "containers": ("Containers", "int", "containers"),
    "containers_running": ("ContainersRunning", "int", "containers that run"),
    "containers_paused": ("ContainersPaused", "int", "containers that are paused"),
    "containers_stopped": ("ContainersStopped", "int", "containers that do not run"),
    "images": ("Images", "int", "images"),
    "storage_driver": ("Driver", "text", "storage driver"),
    "memory_limit": ("MemoryLimit", "flag", "1 if memory can be limited"),
    "swap_limit": ("SwapLimit", "flag", "1 if swap can be limited"),
    "kernel_memory": ("KernelMemory", "flag", "1 if kernel memory can be limited"),
    "cpu_cfs_period": ("CpuCfsPeriod", "flag", "1 if the scheduler has CFS periods"),
    "cpu_cfs_quota": ("CpuCfsQuota", "flag", "1 if the scheduler has CFS quotas"),
    "cpu_shares": ("CPUShares", "flag", "1 if the scheduler has shares"),
    "cpu_set": ("CPUSet", "flag", "1 if processors can be assigned"),
    "ipv4_forwarding": ("IPv4Forwarding", "flag", "1 if the host forwards IPv4"),
    "bridge_nf_iptables": ("BridgeNfIptables", "flag", "1 if bridged IPv4 passes iptables"),
    "bridge_nf_ip6tables": ("BridgeNfIp6tables", "flag", "1 if bridged IPv6 passes ip6tables"),
    "oom_kill_disable": ("OomKillDisable", "flag", "1 if the OOM killer can be disabled"),
    "logging_driver": ("LoggingDriver", "text", "logging driver"),
    "cgroup_driver": ("CgroupDriver", "text", "driver of control groups"),
    "kernel_version": ("KernelVersion", "text", "release of the kernel"),
    "os": ("OperatingSystem", "text", "operating system"),
    "os_type": ("OSType", "text", "type of the operating system, such as `linux`"),
    "architecture": ("Architecture", "text", "architecture"),
    "cpus": ("NCPU", "int", "processors"),
    "memory": ("MemTotal", "int", "memory of the host in bytes"),
    "http_proxy": ("HttpProxy", "text", "proxy for HTTP, without password"),
    "https_proxy": ("HttpsProxy", "text", "proxy for HTTPS, without password"),
    "no_proxy": ("NoProxy", "text", "hosts that are reached without a proxy"),
    "name": ("Name", "text", "name of the host"),
    "server_version": ("ServerVersion", "text", "version of the engine"),
    "root_dir": ("DockerRootDir", "text", "directory of its data"),
}
"""By column: the member, its type, and the column's summary."""
_INFO_COLLATIONS: Final = {"id": "nocase", "kernel_version": "version", "server_version": "version"}


def _info(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import flag, text, whole

    readers = {"text": text, "int": whole, "flag": flag}
    found = docker.get("/info")
    if found is not None:
        row: dict[str, Any] = {name: readers[kind](found, member) for name, (member, kind, _) in _INFO.items()}
        for name in ("http_proxy", "https_proxy"):
            row[name] = wanted.context.access.masker.line(row[name])
        yield list(row.values())


docker_info = docker_table(
    "docker_info",
    "state of Docker's engine",
    _info,
    description="One row.",
    columns=[
        Column(name, "text" if kind == "text" else "int", summary, collation=_INFO_COLLATIONS.get(name, ""))
        for name, (_, kind, summary) in _INFO.items()
    ],
    examples=["SELECT containers_running, storage_driver, root_dir FROM docker_info"],
)


def _images(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import plain_id, text, texts, whole

    for image in docker.objects("/images/json"):
        tags = ",".join(texts(image, "RepoTags"))
        yield plain_id(text(image, "Id")), whole(image, "Created"), whole(image, "Size"), tags


docker_images = docker_table(
    "docker_images",
    "images of Docker",
    _images,
    description="One row per image, without those that are only parts of others.",
    columns=[
        Column("id", "text", "id of the image", collation="nocase"),
        Column("created", "int", "when it was made, in seconds since 1970"),
        Column("size_bytes", "int", "size in bytes"),
        Column("tags", "text", "names with tags, joined by commas"),
    ],
    examples=["SELECT tags, size_bytes FROM docker_images"],
)


def _image_labels(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import asked_id, ids, plain_id, text

    asked = ids(wanted.equal("id") or ())
    images = docker.objects("/images/json")
    return labels_of((asked_id(plain_id(text(image, "Id")), asked), image) for image in images)


docker_image_labels = docker_table(
    "docker_image_labels",
    "labels of Docker's images",
    _image_labels,
    description="One row per label of each image.",
    columns=[Column("id", "text", "id of the image; a comparison with its beginning finds it too"), *_LABEL],
    examples=["SELECT id, key, value FROM docker_image_labels"],
)


def _networks(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import flag, member, objects, text

    for shown, network in matching(docker, wanted, "/networks"):
        addresses = next(iter(objects(member(network, "IPAM.Config"))), None)
        yield (
            shown,
            text(network, "Name"),
            text(network, "Driver"),
            _seconds(text(network, "Created")),
            flag(network, "EnableIPv6"),
            None if addresses is None else text(addresses, "Subnet"),
            None if addresses is None else text(addresses, "Gateway"),
        )


def _seconds(timestamp: str) -> int:
    """A time of RFC 3339 in seconds since 1970; 0 if it is not one."""
    try:
        at = datetime.fromisoformat(_FRACTION.sub("", timestamp))
    except ValueError:
        return 0
    return int(at.timestamp()) if at.tzinfo is not None else 0


docker_networks = docker_table(
    "docker_networks",
    "networks of Docker",
    _networks,
    description="One row per network.",
    columns=[
        Column("id", "text", "id of the network; a comparison with its beginning finds it too"),
        Column("name", "text", "name"),
        Column("driver", "text", "driver, such as `bridge`"),
        Column("created", "int", "when it was created, in seconds since 1970"),
        Column("enable_ipv6", "int", "1 if it has IPv6"),
        Column("subnet", "text", "its first subnet; null if it has none"),
        Column("gateway", "text", "gateway of that subnet; null if it has no subnet"),
    ],
    examples=["SELECT name, driver, subnet FROM docker_networks"],
)

docker_network_labels = docker_table(
    "docker_network_labels",
    "labels of Docker's networks",
    lambda docker, wanted: labels_of(matching(docker, wanted, "/networks")),
    description="One row per label of each network.",
    columns=[Column("id", "text", "id of the network; a comparison with its beginning finds it too"), *_LABEL],
    examples=["SELECT id, key, value FROM docker_network_labels"],
)


def _volume_objects(docker: Docker, wanted: Constraints) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from zeek_agent.host.docker import member, objects, text

    names = wanted.equal("name")
    for volume in objects(member(docker.get("/volumes"), "Volumes")):
        if names is None or text(volume, "Name") in names:
            yield text(volume, "Name"), volume


def _volumes(docker: Docker, wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.docker import text

    for name, volume in _volume_objects(docker, wanted):
        yield name, text(volume, "Driver"), text(volume, "Mountpoint"), text(volume, "Options.type")


docker_volumes = docker_table(
    "docker_volumes",
    "volumes of Docker",
    _volumes,
    description="One row per volume.",
    columns=[
        Column("name", "text", "name of the volume"),
        Column("driver", "text", "driver, such as `local`"),
        Column("mount_point", "text", "its directory on the host"),
        Column("type", "text", "type of file system, if the volume was created with one"),
    ],
    examples=["SELECT name, mount_point FROM docker_volumes"],
)

docker_volume_labels = docker_table(
    "docker_volume_labels",
    "labels of Docker's volumes",
    lambda docker, wanted: labels_of(_volume_objects(docker, wanted)),
    description="One row per label of each volume.",
    columns=[Column("name", "text", "name of the volume"), *_LABEL],
    examples=["SELECT name, key, value FROM docker_volume_labels"],
)

TABLES = (
    docker_version,
    docker_info,
    docker_images,
    docker_image_labels,
    docker_networks,
    docker_network_labels,
    docker_volumes,
    docker_volume_labels,
)
