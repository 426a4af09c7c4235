"""`make setup` and `make run` as a newcomer's clone has them: what is missing, and where state and logs lie."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from acting import NOBODY
from children import fork_in_terminal
from places import ROOT

from zeek_agent import paths
from zeek_agent.config.declarations import Config
from zeek_agent.config.loading import load

SYSTEM = (
    "bash",
    "basename",
    "chown",
    "flock",
    "dirname",
    "env",
    "grep",
    "id",
    "mkdir",
    "mktemp",
    "printf",
    "rm",
    "tail",
    "touch",
    "cp",
)
"""What every system has, and the scripts use."""
OTHERS = ("clang", "git", "make", "ip", "ps", "openssl", "nft", "mkfs.btrfs")
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit ${VERSION_EXIT:-0} ;;
  *ensurepip*) exit ${ENSUREPIP_EXIT:-0} ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
  hatch_build.py) echo "hatch_build: ${HATCH_SAYS:-}"; exit ${HATCH_EXIT:-0} ;;
  install*) echo "pip: no network" >&2; exit ${PIP_EXIT:-0} ;;
esac
"""
"""A Python, and the pip of its environment."""


class Clone:
    """A clone and a system, in a directory that belongs to an ordinary user who runs the scripts."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "clone"
        self._bin = directory / "bin"
        self._bin.mkdir(parents=True)
        for name in (*SYSTEM, *OTHERS):
            (self._bin / name).symlink_to(shutil.which(name) or "/bin/true")
        self._script(self._bin / "python3", PYTHON)
        self._script(self._bin / "ldconfig", "#!/bin/sh\necho 'libbpf.so.1 (libc6)'\n")
        (self.path / "src/zeek_agent/bpf").mkdir(parents=True)
        for name in ("Makefile", "requirements.lock", "pyproject.toml", "hatch_build.py"):
            (self.path / name).touch()
        shutil.copytree(ROOT / "packaging", self.path / "packaging")
        self.user = NOBODY if os.geteuid() == 0 else os.geteuid()
        if os.geteuid() == 0:
            for place in (directory, *directory.rglob("*")):
                os.chown(place, NOBODY, NOBODY, follow_symlinks=False)

    def _script(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def without(self, *names: str) -> None:
        for name in names:
            (self._bin / name).unlink()

    def run(self, *command: str, user: int | None = None, **environment: str) -> tuple[int, list[str]]:
        """A script's exit code and lines."""
        become: Sequence[str] = ()
        if os.geteuid() == 0:
            become = ("setpriv", f"--reuid={self.user if user is None else user}", "--clear-groups")
        scope: Mapping[str, str] = {"PATH": str(self._bin), "HOME": str(self.path.parent), **environment}
        done = subprocess.run(
            [*become, "env", "-i", *(f"{name}={value}" for name, value in scope.items()), *command],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    def setup(self, **environment: str) -> tuple[int, list[str]]:
        return self.run("bash", "packaging/setup.sh", **environment)


@pytest.fixture
def clone() -> Iterator[Clone]:
    """In a directory that other users can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="clone-") as directory:
        Path(directory).chmod(0o755)
        yield Clone(Path(directory))


has_header = pytest.mark.skipif(not Path("/usr/include/bpf/bpf_helpers.h").exists(), reason="needs libbpf-dev")


@has_header
def test_setup_says_one_line_and_nothing_when_it_is_done(clone: Clone) -> None:
    assert clone.setup() == (0, ["setup: installing Python packages"])
    assert clone.setup() == (0, [])


@pytest.mark.long
@has_header
def test_two_setups_at_once_install_once(clone: Clone) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = sorted(lines for _, lines in threads.map(lambda _: clone.setup(), range(4)))
    assert found == [[], [], [], ["setup: installing Python packages"]]


@has_header
@pytest.mark.parametrize("names", [("git",), ("make",), ("git", "make", "openssl")])
def test_missing_programs_are_one_line_with_their_packages(clone: Clone, names: tuple[str, ...]) -> None:
    clone.setup()
    clone.without(*names)
    assert clone.setup() == (0, [f"setup: not installed, because only root can: {' '.join(names)}"])


def test_without_clang_an_ordinary_user_has_no_ebpf(clone: Clone) -> None:
    clone.without("clang")
    objects = clone.path / "src/zeek_agent/bpf"
    for name, moment in (("tcp.bpf.o", 10), ("tcp.bpf.c", 20), ("udp.bpf.o", 30), ("record.h", 15)):
        (objects / name).touch()
        os.utime(objects / name, (moment, moment))
        os.chown(objects / name, clone.user, -1)
    code, (missing, installing, removed) = clone.setup(HATCH_EXIT="1")
    assert code == 0
    assert missing.startswith("setup: not installed, because only root can: clang")
    assert missing.endswith("; without clang events are found by polling instead of eBPF")
    assert installing == "setup: installing Python packages"
    assert removed == "setup: removed, because older than their sources: tcp.bpf.o"
    assert sorted(path.name for path in objects.glob("*.o")) == ["udp.bpf.o"]


@has_header
def test_programs_that_clang_refuses_are_an_error(clone: Clone) -> None:
    code, lines = clone.setup(HATCH_EXIT="1", HATCH_SAYS="clang refused tcp.bpf.c")
    assert code == 1
    assert lines[1:] == [
        "setup: cannot compile the eBPF programs: hatch_build: clang refused tcp.bpf.c (see .venv/setup.log)"
    ]


def test_a_python_without_venv_is_one_line_with_its_package(clone: Clone) -> None:
    code, (line,) = clone.setup(ENSUREPIP_EXIT="1")
    assert code == 1
    assert line.endswith("python3-venv; python3-venv is needed: apt install python3-venv")


def test_no_python_or_an_old_one_is_one_line(clone: Clone) -> None:
    needed = "setup: Python 3.11 or later is needed: apt install python3 python3-venv (or set PYTHON)"
    assert clone.setup(VERSION_EXIT="1") == (1, [needed])
    clone.without("python3")
    assert clone.setup() == (1, [needed])


def test_packages_that_cannot_be_installed_are_one_line(clone: Clone) -> None:
    code, lines = clone.setup(PIP_EXIT="1")
    assert code == 1
    assert lines[-1] == "setup: cannot install Python packages: pip: no network (see .venv/setup.log)"


@pytest.mark.root
def test_a_clone_of_another_user_is_one_line(clone: Clone) -> None:
    code, (line,) = clone.run("bash", "packaging/setup.sh", user=NOBODY - 1)
    assert code == 1
    assert line.endswith("clone/.venv is another user's: clone the repository into a directory of your own")


RUN = ("bash", "packaging/run.sh")
AGENT = '#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n'


@pytest.fixture
def made(clone: Clone) -> Clone:
    """A clone that is set up, with a program that prints its arguments."""
    clone.setup()
    program = clone.path / ".venv/bin/zeek-agent"
    program.write_text(AGENT)
    program.chmod(0o755)
    return clone


def arguments(state: str, logs: str, *more: str) -> list[str]:
    return ["run", "--state-dir", state, "--logs", logs, "--set", f"log.file={state}/agent.log", *more]


def test_state_and_logs_lie_in_the_clone(made: Clone) -> None:
    hint = "in another terminal: .venv/bin/zeek-agent shell (or status, query); the agent's own log is state/agent.log"
    assert made.run(*RUN) == (0, [hint, *arguments("state", "logs")])
    state = made.path / "state"
    assert (stat.S_IMODE(state.stat().st_mode), state.stat().st_uid) == (0o711, made.user)
    assert made.run(*RUN, "--zeek", "z") == (0, arguments("state", "logs", "--zeek", "z"))


@pytest.mark.long
def test_events_of_an_earlier_release_are_pointed_to_once(made: Clone) -> None:
    former = made.path.parent / ".local/state/zeek-agent"
    former.mkdir(parents=True)
    (former / "events.db").touch()
    code, (line, *_) = made.run(*RUN)
    assert code == 0
    assert line == f'events now go to ./state; to continue in {former}: make run ARGS="--state-dir {former}"'
    assert made.run(*RUN)[1][0].startswith("in another terminal")


@pytest.mark.long
@pytest.mark.root
def test_users_of_one_clone_do_not_meet(made: Clone) -> None:
    made.path.chmod(0o777)
    assert made.run(*RUN, "-h", user=0) == (0, arguments("state-root", "logs", "-h"))
    assert (made.path / "state-root").stat().st_uid == 0
    assert (made.path / "logs").stat().st_uid == NOBODY, "the collector writes as the clone's owner"
    assert made.run(*RUN, "-h") == (0, arguments("state", "logs", "-h"))
    assert made.run(*RUN, "-h", user=0) == (0, arguments("state-root", "logs", "-h"))
    other = NOBODY - 1
    assert made.run(*RUN, "-h", user=other) == (0, arguments(f"state-{other}", f"logs-{other}", "-h"))
    os.chown(made.path / "state", other, other)
    assert made.run(*RUN, "-h") == (0, arguments("state-nobody", "logs", "-h"))


@pytest.mark.long
@pytest.mark.root
def test_commands_of_a_clone_look_for_their_users_agent_before_others(tmp_path: Path) -> None:
    (tmp_path / "packaging").mkdir()
    (tmp_path / "packaging/run.sh").touch()
    for name, owner in (("state", NOBODY), ("state-a", NOBODY), ("state-root", 0)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
    assert [state.name for state in paths.states_of_clone(tmp_path)] == ["state-root", "state", "state-a"]


def test_commands_of_a_clone_look_for_its_agent_first(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    usual = paths.locate(Config(), environment)
    (tmp_path / "state").mkdir()
    assert paths.locate_for_commands(Config(), environment, tmp_path) == usual, "not a clone"
    (tmp_path / "packaging").mkdir()
    (tmp_path / "packaging/run.sh").touch()
    found = paths.locate_for_commands(Config(), environment, tmp_path)
    assert found.sockets == (tmp_path / "state/zeek-agent.sock", *usual.sockets)
    assert found.state == usual.state, "no events there"
    (tmp_path / "state/events.db").touch()
    assert paths.locate_for_commands(Config(), environment, tmp_path).state == tmp_path / "state"
    for setting in ("state_dir", "control.socket"):
        given, _ = load(None, {}, {setting: str(tmp_path / "other")})
        assert paths.locate_for_commands(given, environment, tmp_path) == paths.locate(given, environment)


@pytest.mark.long
def test_the_terminal_has_two_lines_and_then_the_live_view(tmp_path: Path) -> None:
    """The clone's program is this tree's; audit lines go to the log."""
    clone = tmp_path / "clone"
    (clone / ".venv/bin").mkdir(parents=True)
    shutil.copytree(ROOT / "packaging", clone / "packaging")
    program = clone / ".venv/bin/zeek-agent"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zeek_agent "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_AGENT_")}
    environment = {**kept, "TERM": "xterm", "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "none")}
    command = ["bash", str(clone / "packaging/run.sh"), "--set", "zeek.reconnect_min=0.1"]
    pid, terminal = fork_in_terminal(lambda: os.execvpe("bash", command, environment))
    seen = ""
    try:
        deadline = time.monotonic() + 60
        while "zeek-agent-process-events" not in seen:
            assert time.monotonic() < deadline, seen
            subprocess.run(["true"], check=True)
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        os.write(terminal, b"\x03")
        while data := read_if_open(terminal):
            seen += data
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    start, view, _ = seen.partition("\x1b[?25l")
    assert view
    first, second = start.splitlines()
    assert re.fullmatch(rf"zeek-agent \S+: logs in {clone}/logs; Ctrl-C ends", first)
    assert second.startswith("recording processes by ")
    assert "audit" not in seen
    assert "9.0.0" not in seen
    assert "zeek_agent.audit: embedded: SELECT" in (clone / "state/agent.log").read_text()
    assert (clone / "state/events.db").exists()


def read_if_open(terminal: int) -> str:
    """What the other side writes; empty once it has ended, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:
        return ""
