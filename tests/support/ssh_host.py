"""A host of the test's own to log in to: sshd, su and sudo with a system log, in private namespaces.

Accounts, keys, logs and /dev/log exist only in there, so nothing is left on the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from waiting import until_sync

LogKind = Literal["journal", "syslog", "none"]
USER, PASSWORD = "zalice", "correct-horse"
UID = 61_500 + os.getpid() % 3_000
"""One for each test run: the kernel shows the sessions of all of them."""
PORT = 2222
DIRECTORY = "/run/test"
JOURNALD = Path("/lib/systemd/systemd-journald")

SETUP = """
set -e
uid=$4
mount --make-rprivate /
mount -t tmpfs scratch "$1"
for place in etc home root; do
    mkdir "$1/$place" "$1/$place-work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/$place,workdir=$1/$place-work" "/$place"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /var/lib/sudo
mkdir -p /run/sshd /run/lock /run/sudo /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nReadKMsg=no\\nRateLimitBurst=0\\nMaxLevelSyslog=emerg\\n' > /run/systemd/journald.conf.d/test.conf
echo 'Audit=' >> /run/systemd/journald.conf.d/test.conf
mkdir "$1/dev"
for device in null zero full random urandom tty; do
    touch "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
mkdir "$1/dev/pts" "$1/dev/shm"
mount --bind /dev/pts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
test "$2" != journal || ln -s /run/systemd/journal/dev-log "$1/dev/log"
mount --rbind "$1/dev" /dev
install -m 664 /dev/null /var/log/wtmp
install -m 660 /dev/null /var/log/btmp
test "$2" != syslog || touch /var/log/auth.log
ip link set lo up
useradd --system --uid 61235 _zeek-agent || true
groupadd --gid "$uid" zalice
useradd --create-home --shell /bin/sh --uid "$uid" --gid "$uid" zalice
echo 'zalice:correct-horse' | chpasswd
printf 'Defaults !lecture\\nzalice ALL=(root) /usr/bin/id\\n' > /etc/sudoers.d/test
chmod 440 /etc/sudoers.d/test
test "$3" = delays || sed -i 's/pam_unix.so/& nodelay/' /etc/pam.d/common-auth
mkdir --mode=755 /run/test
touch /run/ready
shift 4
exec "$@"
"""
SYSLOG_DAEMON = """
import os, re, socket, sys, time
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.bind("/dev/log")
os.chmod("/dev/log", 0o666)
with open("/var/log/auth.log", "ab", buffering=0) as file:
    while True:
        message = channel.recv(65536).rstrip(b"\\0\\n")
        match = re.match(rb"<(\\d+)>(\\w{3} [ \\d]\\d [\\d:]{8} )?", message)
        text = message[match.end():] if match else message
        file.write(time.strftime("%b %e %H:%M:%S").encode() + b" host " + text + b"\\n")
"""
CONFIG = """
{more}
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
PidFile {directory}/sshd.pid
AuthorizedKeysFile {directory}/authorized_keys
UsePAM yes
UseDNS no
PasswordAuthentication yes
KbdInteractiveAuthentication no
StrictModes no
MaxAuthTries 6
PrintMotd no
"""


class SshHost:
    """The running host. `prefix` before a command runs it in there."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.root = Path(f"/proc/{holder.pid}/root")
        self.prefix = ("nsenter", f"--target={holder.pid}", "--mount", "--net")
        self.directory = self.root / "run/test"
        """Keys and configuration, which are `DIRECTORY` in there, and readable by all users."""
        self._servers: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002
        return subprocess.run([*self.prefix, *command], check=False, capture_output=True, text=True, input=input or "")

    def run_as_user(self, *command: str, input: str | None = None) -> None:  # noqa: A002
        """Run a command as `USER` who has not logged in."""
        self.run("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command, input=input)

    def start_sshd(self, more: str = "") -> None:
        """Start sshd, and make a key that may log in as `USER`, and one that may not."""
        for name in ("host_key", "key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name], check=True)
        shutil.copy(self.directory / "key.pub", self.directory / "authorized_keys")
        (self.directory / "authorized_keys").chmod(0o644)
        config = self.directory / "sshd_config"
        config.write_text(CONFIG.format(port=PORT, directory=DIRECTORY, more=more))
        for name, word in (("right", PASSWORD), ("wrong", "nonsense")):
            script = self.directory / name
            script.write_text(f"#!/bin/sh\necho {word}\n")
            script.chmod(0o755)
        server = subprocess.Popen([*self.prefix, "/usr/sbin/sshd", "-D", "-f", f"{DIRECTORY}/sshd_config"])
        self._servers.append(server)
        until_sync((self.directory / "sshd.pid").exists)

    def ssh(
        self,
        *command: str,
        user: str = USER,
        key: str | None = None,
        password: str | None = None,
        attempts: int = 1,
        method: str = "password",
    ) -> subprocess.CompletedProcess[str]:
        """Log in with that key, or by that method with that password: `right` or `wrong`."""
        return self.run(*self._ssh(command, user, key, password, attempts, method))

    def start_ssh(self, *command: str, user: str = USER, key: str) -> subprocess.Popen[bytes]:
        """The same without waiting for its end."""
        arguments = (*self.prefix, *self._ssh(command, user, key, None, 1, "password"))
        return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _ssh(
        self, command: Sequence[str], user: str, key: str | None, password: str | None, attempts: int, method: str
    ) -> list[str]:
        options: Mapping[str, object] = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "NumberOfPasswordPrompts": attempts,
            "PreferredAuthentications": "publickey" if key else method,
            "IdentitiesOnly": "yes",
            "IdentityFile": f"{DIRECTORY}/{key}" if key else "none",
        }
        arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        environment = [f"SSH_ASKPASS={DIRECTORY}/{password or 'wrong'}", "SSH_ASKPASS_REQUIRE=force"]
        end = ("-p", str(PORT), "-l", user, "127.0.0.1", *(command or ("true",)))
        return ["env", *environment, "ssh", *arguments, *end]

    def stop(self) -> None:
        for server in self._servers:
            server.terminate()
            server.wait()


@contextmanager
def audit_enabled() -> Iterator[None]:
    """Have the kernel pass on audit records; its state is restored. Skips the test where that is not possible."""
    if shutil.which("auditctl") is None:
        pytest.skip("needs auditctl")
    state = subprocess.run(["auditctl", "-s"], check=False, capture_output=True, text=True).stdout
    if "enabled" not in state or "enabled 2" in state:
        pytest.skip("needs audit whose state may be changed")
    subprocess.run(["auditctl", "-e", "1"], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["auditctl", "-e", "1" if "enabled 1" in state else "0"], check=True, capture_output=True)


@contextmanager
def ssh_host(directory: Path, log: LogKind, *, delays: bool = False) -> Iterator[SshHost]:
    """Start the host; the test is skipped by name where that is not possible. `delays`: PAM waits after a refusal."""
    for program in ("unshare", "nsenter", "ip", "/usr/sbin/sshd", "ssh", "useradd", "chpasswd", "sudo"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if log == "journal" and not JOURNALD.exists():
        pytest.skip(f"needs {JOURNALD}")
    directory.mkdir(exist_ok=True)
    scratch = directory / "scratch"
    scratch.mkdir(exist_ok=True)
    start = [
        "unshare",
        "--mount",
        "--net",
        "sh",
        "-c",
        SETUP,
        "sh",
        str(scratch),
        log,
        "delays" if delays else "-",
        str(UID),
    ]
    tried = subprocess.run([*start, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs to mount file systems: {tried.stderr.strip()}")
    daemon = {
        "journal": [str(JOURNALD)],
        "syslog": [sys.executable, "-c", SYSLOG_DAEMON],
        "none": ["sleep", "infinity"],
    }[log]
    ready = {"journal": "run/log/journal/*/system.journal", "syslog": "dev/log", "none": "var/log/btmp"}[log]
    output = subprocess.DEVNULL
    with subprocess.Popen([*start, *daemon], stdout=output, stderr=output) as holder:
        host = SshHost(holder)
        try:
            until_sync(lambda: bool(list(host.root.glob(ready))) and (host.root / "run/ready").exists())
            yield host
        finally:
            host.stop()
            holder.terminate()
