"""Names of containers and processes."""

from __future__ import annotations

import pytest

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.containers import container_id
from zeek_agent.host.linux.procfs import cgroup_path

ID = "3f2a" * 16
OTHER = "b0c1" * 16
POD = "kubepods-besteffort-pod7c1f_22.slice"
TASK = "c23e5f76c09d438aa1824ca4058bdcab"
BUILD = "ljd85p0ynsgwcpxz7e2tm9fnl"
UUID = "0d233f08-00c2-43d8-5b57-2c2af4f5bfc0"
OTHER_UUID = "55091c13-b8cf-4801-b527-f4601742204d"
APP = "70eb4ce5-a065-4401-6990-88ed"


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
        (f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/{POD}/cri-containerd-{ID}.scope", ID),
        (f"/docker/{OTHER}/kubelet/kubepods/burstable/pod{UUID}/{ID}", ID),
        (f"/kubepods/burstable/pod{UUID}/crio-{ID}", ID),
        (f"/kubepods/burstable/pod{TASK}/{ID}", ID),
        (f"/kubepods.slice/{POD}/docker-{ID}.scope", ID),
        (f"/kubepods.slice/{POD}/crio-{ID}.scope/container", ID),
        (f"/default/{ID}", ID),
        (f"/k8s.io/{ID}", ID),
        (f"/system.slice/nerdctl-{ID}.scope", ID),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{ID}.scope", ID),
        (f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", ID),
        (f"/system.slice/web.service/libpod-payload-{ID}", ID),
        (
            "/user.slice/user-1000.slice/user@1000.service/buildah-buildah106535269-1629075.scope",
            "buildah-buildah106535269",
        ),
        ("/buildah-buildah2937778511", "buildah-buildah2937778511"),
        (f"/buildkit/{BUILD}", BUILD),
        (f"/docker/buildkit/{BUILD}", BUILD),
        (f"/docker/{ID}/buildkit/{BUILD}", BUILD),
        (f"/system.slice/docker-{BUILD}.scope", BUILD),
        (f"/kubepods/burstable/pod{UUID}/{ID}/buildkit/{BUILD}/init", BUILD),
        (f"/kubepods/burstable/pod{UUID}/{ID}/buildkit", ID),
        (f"/ecs/{UUID}/{ID}", ID),
        (f"/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope", ID),
        (f"/ecs/{TASK}-438871274", f"{TASK}-438871274"),
        (f"/ecs/{TASK[:-2]}/{TASK}-1234567890", f"{TASK}-1234567890"),
        (f"/ecs/cluster/{TASK}/{TASK}-1234567890/child", f"{TASK}-1234567890"),
        (f"/../{TASK}-1234567890", f"{TASK}-1234567890"),
        (f"/{TASK}-1234567890", f"{TASK}-1234567890"),
        (f"/garden/{APP}", APP),
        (f"/system.slice/garden.service/garden/{APP}", APP),
        (f"/system.slice/garden.service/garden/good/{APP}", APP),
        (f"/garden/bad/{UUID}/init", UUID),
        (f"/garden-1/executor-healthcheck-{APP}", f"executor-healthcheck-{APP}"),
        (f"/system.slice/runit.service/{UUID}", UUID),
        (f"/{UUID}", UUID),
        (f"/mesos/{UUID}", UUID),
        (f"/mesos/{UUID}/mesos/{OTHER_UUID}", OTHER_UUID),
        ("/lxc/101/ns/init.scope", "101"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/lxc-web.scope/lxc.payload.web", "web"),
        ("/machine/web.libvirt-lxc/emulator", "web"),
        (r"/machine.slice/machine-lxc\x2d4711\x2dweb.scope/libvirt", "lxc-4711-web"),
        ("/machine.slice/systemd-nspawn@supervisor.service/payload/supervisor", "supervisor"),
        (f"/docker/{ID}/machine.slice/machine-arch.scope/supervisor", ID),
        (f"/docker/{ID}/machine.slice/libpod-conmon-{OTHER}.scope", ID),
        (f"/../docker-{ID}.scope", ID),
        (f"/system.slice/docker-{ID}.scope (deleted)", ID),
        (f"/garden/{APP} (deleted)", APP),
        ("/lxc.payload.web (deleted)", "web"),
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
        "/docker/buildkit",
        f"/docker/buildkit/{BUILD}0",
        f"/system.slice/web-{BUILD}.scope",
        f"/ecs/{TASK}",
        f"/system.slice/{TASK}-1",
        "/system.slice/garden.service",
        "/system.slice/garden.service/garden/good",
        "/garden/init",
        "/system.slice/garden-center.service/worker",
        f"/kubepods/burstable/pod{UUID}",
        f"/firecracker/{UUID}",
        f"/user.slice/user-1000.slice/{UUID}.scope",
        "/machine.slice/systemd-nspawn@web.service/supervisor",
        "/machine.slice/machine-arch.scope/supervisor",
        "/lxc.monitor.web",
        "/lxc.monitor/web",
        f"/system.slice/web.service/supervisor/libpod-conmon-{ID}",
    ],
)
def test_other_control_groups_are_not_containers(path: str) -> None:
    assert container_id(path) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("0::/system.slice/ssh.service", "/system.slice/ssh.service"),
        ("", "/"),
        ("5:memory:/\n0::/", "/"),
        (f"12:pids:/docker/{ID}\n5:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/", f"/docker/{ID}"),
        (f"5:memory:/docker/{ID}\n0::/system.slice/containerd.service", f"/docker/{ID}"),
        (f"5:cpuset,memory:/\n4:pids:/docker/{ID}\n0::/system.slice/containerd.service", f"/docker/{ID}"),
        (
            f"5:memory:/system.slice/containerd.service/{POD}:cri-containerd:{ID}\n0::/system.slice/containerd.service",
            f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}",
        ),
        (
            "5:memory:/user.slice\n4:pids:/user.slice/a\n0::/user.slice/user-0.slice/session-1.scope",
            "/user.slice/user-0.slice/session-1.scope",
        ),
        ("5:freezer:/elsewhere\n0::/system.slice/ssh.service", "/system.slice/ssh.service"),
        ("1:name=systemd:/user.slice/session-1.scope\n5:memory:/user.slice", "/user.slice/session-1.scope"),
        ("0::/a:b::c", "/a:b::c"),
    ],
)
def test_one_control_group_of_both_versions_is_shown(lines: str, expected: str) -> None:
    assert cgroup_path(lines.encode()) == expected


def test_an_entity_id_distinguishes_boots_processes_and_reused_pids() -> None:
    boot = "4f3a9c21-d07b-4d7e-9b58-2f2b64f0a1c3"
    assert entity_id(boot, 1234, 567890) == "4f3a9c21d07b-1234-567890"
    ids = {entity_id(boot, 1, 23), entity_id(boot, 12, 3), entity_id("5" + boot[1:], 1, 23), entity_id(boot, 1, 24)}
    assert len(ids) == 4
