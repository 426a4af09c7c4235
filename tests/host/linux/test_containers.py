"""Names of containers and processes."""

from __future__ import annotations

import pytest

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.containers import container_id

ID = "3f2a" * 16
OTHER = "b0c1" * 16
POD = "kubepods-besteffort-pod7c1f_22.slice"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/system.slice/docker-{ID}.scope/init.scope", ID),
        (f"/kubepods.slice/kubepods-besteffort.slice/{POD}/cri-containerd-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-besteffort.slice/{POD}/crio-{ID}.scope", ID),
        (f"/kubepods/burstable/pod4b0c2c0e-58d1-4b8b-9f4e-000000000000/{ID}", ID),
        (f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID),
        (f"/libpod_parent/libpod-{ID}", ID),
        (f"/ecs/0123456789abcdef0123456789abcdef/{ID}", ID),
        ("/ecs/" + "0a" * 16 + "/" + "0a" * 16 + "-1234567890", "0a" * 16 + "-1234567890"),
        ("/lxc.payload.web/init.scope", "web"),
        ("/lxc/web", "web"),
        (r"/machine.slice/systemd-nspawn@build\x2dhost.service/payload", "build-host"),
        ("/machine.slice/machine-arch.scope", "arch"),
        (f"/docker/{OTHER}/docker/{ID}", ID),
        (f"/../docker-{ID}.scope", ID),
    ],
)
def test_the_runtimes_id_is_found(path: str, expected: str) -> None:
    assert container_id(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/init.scope",
        "/system.slice/sshd.service",
        "/user.slice/user-1000.slice/session-3.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/{POD}/crio-conmon-{ID}.scope",
        r"/machine.slice/machine-qemu\x2d1\x2dvm.scope",
        "/system.slice/docker.service",
        f"/docker/{ID}0",
    ],
)
def test_other_control_groups_are_not_containers(path: str) -> None:
    assert container_id(path) is None


def test_an_entity_id_distinguishes_boots_processes_and_reused_pids() -> None:
    boot = "4f3a9c21-d07b-4d7e-9b58-2f2b64f0a1c3"
    assert entity_id(boot, 1234, 567890) == "4f3a9c21d07b-1234-567890"
    ids = {entity_id(boot, 1, 23), entity_id(boot, 12, 3), entity_id("5" + boot[1:], 1, 23), entity_id(boot, 1, 24)}
    assert len(ids) == 4
