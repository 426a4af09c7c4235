r"""The container of a process, by its control group.

Container runtimes put each container into a control group whose name contains its id:

| Runtime | Control group |
|---|---|
| Docker | `/docker/ID`, `/system.slice/docker-ID.scope` |
| containerd, CRI-O in Kubernetes | `/kubepods.slice/…/cri-containerd-ID.scope`, `…/crio-ID.scope`, `/kubepods/…/ID` |
| nerdctl | `/NAMESPACE/ID`, `/system.slice/nerdctl-ID.scope` |
| Podman | `/machine.slice/libpod-ID.scope`, `/libpod_parent/libpod-ID`, `/UNIT.service/libpod-payload-ID` |
| Buildah, also for `podman build` | `/…/buildah-buildahNUMBER-PID.scope`, `/buildah-buildahNUMBER` |
| BuildKit, also for `docker build` | `/buildkit/ID`, `/docker/buildkit/ID`, `/system.slice/docker-ID.scope` |
| Amazon ECS | `/ecs/TASK/ID`, `/ecstasks.slice/…/docker-ID.scope` |
| Amazon ECS on Fargate | `/ecs/TASK/TASK-NUMBER`, `/ecs/TASK-NUMBER` |
| Garden (Cloud Foundry) | `/garden/HANDLE`, `/…/garden.service/garden/good/HANDLE` |
| Garden (Concourse) | `/UUID`, `/…/UNIT.service/UUID` |
| Mesos | `/mesos/UUID` |
| LXC | `/lxc.payload.NAME`, `/lxc/NAME` |
| libvirt's LXC | `/machine.slice/machine-lxc\x2dNUMBER\x2dNAME.scope`, `/machine/NAME.libvirt-lxc` |
| systemd-nspawn | `/machine.slice/systemd-nspawn@NAME.service`, `/machine.slice/machine-NAME.scope` |

An ID has 64 hexadecimal digits, BuildKit's 25 digits and letters. A process in a cgroup namespace, such as a
container's, sees paths from there: `/../ID`.
"""

from __future__ import annotations

import re
from functools import lru_cache

_ID = re.compile(
    r"""
    /(?:(?!crio-conmon-|libpod-conmon-)[\w.:-]*[-:])?(?P<hash>[0-9a-f]{64})(?:\.scope)?(?=/|$)
    | (?:^|/\.\.|/ecs(?:/[^/]+){0,2}?)/(?P<fargate>[0-9a-f]{32}-[0-9]+)(?=/|$)
    | /buildkit/(?P<buildkit>[0-9a-z]{25})(?=/|$)
    | /(?:docker|buildkit)-(?P<build>[0-9a-z]{25})\.scope(?=/|$)
    | /(?P<buildah>buildah-buildah[0-9]+)(?:-[0-9]+\.scope)?(?=/|$)
    | /garden(?:-[^/.]+)?/(?:(?:good|bad)/)?(?!(?:good|bad|init)(?:/|$))(?P<garden>[^/]+)
    | (?:^|/\.\.|/mesos|\.service)/(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-(?:[0-9a-f]{12}|[0-9a-f]{4}))(?=/|$)
    | /lxc\.payload[./](?P<lxc>[^/]+)
    | /lxc/(?P<old_lxc>[^/]+)
    | /machine/(?P<libvirt>[^/]+)\.libvirt-lxc(?=/|$)
    | /systemd-nspawn@(?P<nspawn>[^/]+)\.service(?!/supervisor(?:/|$))(?=/|$)
    | /machine-(?!qemu)(?P<machine>[^/]+)\.scope(?!/supervisor(?:/|$))(?=/|$)
    """,
    re.VERBOSE,
)
_DELETED = " (deleted)"
"""What the kernel appends for a zombie whose control group is gone (cgroups(7))."""
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@lru_cache(maxsize=4096)
def container_id(cgroup_path: str) -> str | None:
    """The id that the runtime shows (64 hexadecimal digits), or the name if it has only names.

    For nested containers this is the innermost. None for a process outside containers, a container's monitor
    (`conmon`, the supervisor of systemd-nspawn) and a virtual machine.
    """
    found: str | None = None
    for match in _ID.finditer(cgroup_path.removesuffix(_DELETED)):
        found = next(group for group in match.groups() if group is not None)
    return found and _ESCAPE.sub(lambda match: chr(int(match[1], 16)), found)
