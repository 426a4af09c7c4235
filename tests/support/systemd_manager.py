"""A systemd that manages units of its own on a message bus of its own, whatever this host booted with.

At its start, systemd moves all processes of its control group to another one. It gets control groups of its own, below
those of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until_sync

SYSTEMD = Path("/lib/systemd/systemd")
_PROGRAMS = ("busctl", "dbus-daemon", "nsenter", "unshare")
AVAILABLE = os.geteuid() == 0 and SYSTEMD.exists() and None not in map(shutil.which, _PROGRAMS)
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type><listen>systemd:</listen><auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""
_BUS_UNITS = {
    "dbus.socket": "[Socket]\nListenStream=%t/socket\n",
    "dbus.service": "[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\n"
    "ExecStart=/usr/bin/dbus-daemon --config-file=%t/bus.conf --nofork --nopidfile --systemd-activation\n",
}
_BOOT = """
set -e
for group in {groups}; do echo $$ > "$group/cgroup.procs"; done
mount -t tmpfs none /run/systemd
mkdir /run/systemd/system
exec {systemd} --user
"""
_CPUSET = "cpuset"
"""A hierarchy whose new groups take no process until they have been given CPUs."""


def _own_groups() -> Iterator[Path]:
    """The control groups of this process as directories, in the hierarchies that systemd may use."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, place = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        for controllers, path in own.items():
            is_it = kind == "cgroup2" if not controllers else set(controllers.split(",")) <= set(options.split(","))
            if is_it and controllers != _CPUSET and root == "/":
                yield Path(place + path)


@contextmanager
def _control_groups(name: str) -> Iterator[list[Path]]:
    """A new group of that name in each hierarchy; skips the test where this host permits none."""
    groups: list[Path] = []
    try:
        for group in _own_groups():
            try:
                (group / name).mkdir()
            except OSError as error:
                pytest.skip(f"no control group can be made: {error}")
            groups.append(group / name)
        yield groups
    finally:
        for group in groups:
            for inside in sorted(group.rglob("*/"), reverse=True):
                inside.rmdir()
            group.rmdir()


class SystemdManager:
    """A user's manager, process `pid`. `socket` is that of its bus, in its runtime directory `place`."""

    def __init__(self, pid: int, place: Path, environment: dict[str, str]) -> None:
        self.pid = pid
        self.place = place
        self.socket = str(place / "socket")
        self._environment = environment

    def systemctl(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "systemctl", "--user", *arguments],
            capture_output=True, text=True, check=False, env=self._environment,
        )  # fmt: skip
        assert fails or done.returncode == 0, done.stderr
        return done.stdout

    def is_on_bus(self) -> bool:
        command = ["busctl", f"--address=unix:path={self.socket}", "status", "org.freedesktop.systemd1"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def systemd_manager(place: Path, units: dict[str, str]) -> Iterator[SystemdManager]:
    """`units` are the contents of unit files by their names. `place` must not exist."""
    directory = place / "config/systemd/user"
    directory.mkdir(parents=True)
    place.chmod(0o700)
    for name, content in (_BUS_UNITS | units).items():
        (directory / name).write_text(content)
    (place / "bus.conf").write_text(_BUS.format(place=place))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(place),
        "XDG_RUNTIME_DIR": str(place),
        "XDG_CONFIG_HOME": str(place / "config"),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={place}/socket",
        "SYSTEMD_LOG_TARGET": "console",
    }
    with _control_groups(f"zeek-agent-test-{os.getpid()}") as groups, (place / "output").open("wb") as output:
        script = _BOOT.format(systemd=SYSTEMD, groups=" ".join(map(str, groups)))
        boot = ["unshare", "--mount", "sh", "-c", script]
        systemd = subprocess.Popen(boot, env=environment, stdout=output, stderr=output)
        try:
            manager = SystemdManager(systemd.pid, place, environment)
            until_sync((place / "systemd/private").exists, complaint="systemd has not started")
            manager.systemctl("start", "dbus.service")
            until_sync(manager.is_on_bus, complaint="systemd has not connected to its bus")
            yield manager
        finally:
            systemd.terminate()
            systemd.wait(20)
