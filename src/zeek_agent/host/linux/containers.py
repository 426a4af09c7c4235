"""The container of a process, by its control group.

Container runtimes put each container into a control group whose name contains its id:

| Runtime | Control group |
|---|---|
| Docker | `/docker/ID`, `/system.slice/docker-ID.scope` |
| containerd, CRI-O in Kubernetes | `/kubepods.slice/…/cri-containerd-ID.scope`, `…/crio-ID.scope`, `/kubepods/…/ID` |
| Podman | `/machine.slice/libpod-ID.scope`, `/libpod_parent/libpod-ID` |
| Amazon ECS | `/ecs/TASK/ID`, on Fargate `/ecs/TASK/TASK-NUMBER` |
| LXC | `/lxc.payload.NAME`, `/lxc/NAME` |
| systemd-nspawn | `/machine.slice/systemd-nspawn@NAME.service`, `/machine.slice/machine-NAME.scope` |
"""

from __future__ import annotations

import re
from functools import lru_cache

_ID = re.compile(
    r"""
    /(?:(?!crio-conmon-|libpod-conmon-)[\w.:-]*[-:])?(?P<hash>[0-9a-f]{64})(?:\.scope)?(?=/|$)
    | /ecs/[^/]+/(?P<task>[0-9a-f]{32}-[0-9]+)(?=/|$)
    | /lxc\.payload[./](?P<lxc>[^/]+)
    | /lxc/(?P<old_lxc>[^/]+)
    | /systemd-nspawn@(?P<nspawn>[^/]+)\.service(?=/|$)
    | /machine-(?!qemu)(?P<machine>[^/]+)\.scope(?=/|$)
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@lru_cache(maxsize=4096)
def container_id(cgroup_path: str) -> str | None:
    """The id that the runtime shows (64 hexadecimal digits), or the name if it has only names.

    For nested containers this is the innermost. None for a process outside containers, a container's monitor
    (`conmon`) and a virtual machine.
    """
    found: str | None = None
    for match in _ID.finditer(cgroup_path):
        found = next(group for group in match.groups() if group is not None)
    return found and _ESCAPE.sub(lambda match: chr(int(match[1], 16)), found)
