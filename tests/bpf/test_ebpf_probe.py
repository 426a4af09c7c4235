"""What the probe says where eBPF cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from unit import unit_settings

from zeek_agent.bpf import libbpf, probe


def test_a_kernel_that_is_too_old_is_named() -> None:
    reason = probe.why_not(("processes",), release="5.10.0-28-amd64")
    assert reason == "kernel 5.10.0-28-amd64 is too old for eBPF sources: 5.15 or later is needed"


def test_missing_type_information_is_named(tmp_path: Path) -> None:
    reason = probe.why_not(("processes",), btf=str(tmp_path / "vmlinux"))
    assert reason is not None
    assert "CONFIG_DEBUG_INFO_BTF" in reason


def test_objects_that_were_not_built_are_named(tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    btf.touch()
    try:
        libbpf.load_library()
    except libbpf.LibbpfMissingError:
        pytest.skip("needs libbpf")
    reason = probe.why_not(("nothing",), release="6.1", btf=str(btf))
    assert reason is not None
    assert reason.startswith("built without eBPF (no nothing.bpf.o): install clang")


def test_a_missing_libbpf_is_named(tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    btf.touch()
    code = (
        "import ctypes\n"
        "def missing(name, **_): raise OSError('no such file')\n"
        "ctypes.CDLL = missing\n"
        "from zeek_agent.bpf import probe\n"
        f"print(probe.why_not(('processes',), release='6.1', btf={str(btf)!r}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("libbpf.so.1 is missing (Debian: apt install libbpf1)")


@pytest.mark.root
def test_missing_permission_is_named() -> None:
    if probe.why_not(("processes",)) is not None:
        pytest.skip("no eBPF here")
    code = "from zeek_agent.bpf import probe; print(probe.why_not(('processes',)))"
    # It may read what is only root's: the tests may lie there.
    command = ["setpriv", *as_nobody_with("dac_read_search"), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "not permitted without CAP_BPF and CAP_PERFMON: run as root, or grant them\n"


def granted_by_the_unit() -> list[str]:
    return [name.removeprefix("CAP_").lower() for name in unit_settings()["CapabilityBoundingSet"]]


def as_root_with(*capabilities: str) -> list[str]:
    return [f"--bounding-set={','.join(['-all', *(f'+{name}' for name in capabilities)])}"]


def as_nobody_with(*capabilities: str) -> list[str]:
    names = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={names}", f"--ambient-caps={names}"]


@pytest.mark.root
@pytest.mark.parametrize(
    "privileges",
    [
        pytest.param(as_root_with(*granted_by_the_unit()), id="the systemd unit's"),
        pytest.param(
            as_nobody_with("bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search"), id="another user's"
        ),
    ],
)
def test_a_few_capabilities_are_enough(privileges: list[str]) -> None:
    if probe.why_not(("processes",)) is not None:
        pytest.skip("no eBPF here")
    code = (
        "import os\n"
        "from zeek_agent.config.sections import SourceSettings\n"
        "from zeek_agent.bpf.iterators import Iterators\n"
        "from zeek_agent.recording.registry import candidates\n"
        "by_kind = candidates(SourceSettings(processes='ebpf', sockets='ebpf'))\n"
        "for source in by_kind['processes'] + by_kind['sockets']:\n"
        "    print(source.probe())\n"
        "    source.start(lambda table, rows: None)\n"
        "    print(source.counters.last_error)\n"
        "print(os.getpid() in [task.pid for task in Iterators().tasks()])\n"
        "for source in by_kind['sockets'] + by_kind['processes']:\n"
        "    source.stop()\n"
    )
    mounting = 'mount -t tracefs none /sys/kernel/tracing && exec setpriv "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounting, "sh", *privileges, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["None"] * 4 + ["True"], "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("41 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"),
        ("41 31 0:31 / /mnt/a\\040b rw shared:9 - cgroup2 none rw", "/mnt/a b"),
        ("41 31 0:31 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        ("41 31 0:31 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu", None),
    ],
)
def test_where_control_groups_are_mounted(tmp_path: Path, line: str, found: str | None) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"22 1 254:0 / / rw - ext4 /dev/vda rw\n{line}\n")
    assert probe.cgroup2(str(mountinfo)) == found


@pytest.mark.root
def test_a_rejected_program_reports_the_reason() -> None:
    if probe.why_not(("processes",)) is not None:
        pytest.skip("no eBPF here")
    opened = libbpf.BpfObject("processes")
    with pytest.raises(OSError, match=r"BPF object processes: cannot attach on_exec: .*before load"):
        opened.attach("on_exec")
    opened.close()
