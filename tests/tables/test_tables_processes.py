"""The table processes, compared with ps and with processes that the tests start."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import ask
from children import child
from places import ROOT, SUPPORT
from waiting import until_sync

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.host.entity_id import entity_id
from zeek_agent.tables.processes import processes
from zeek_agent.text import to_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PR_SET_NAME = 15


@contextmanager
def sleeper(*arguments: str | bytes, **options: object) -> Iterator[int]:
    """An executed program whose arguments are in place, which takes the kernel a moment longer than the exec."""
    process = subprocess.Popen(arguments, **options)  # type: ignore[call-overload]
    try:
        until_sync(Path(f"/proc/{process.pid}/cmdline").read_bytes)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def set_name(name: bytes) -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_NAME, name, 0, 0, 0) == 0


def test_it_agrees_with_ps() -> None:
    fields = "pid=,ppid=,euid=,egid=,ruid=,rgid=,nlwp=,stat="
    before = ask(processes)
    listing = subprocess.run(["ps", "-eo", fields], capture_output=True, text=True, check=True).stdout
    after = {row["pid"]: row for row in ask(processes)}
    shown = {int(line.split()[0]): line.split() for line in listing.splitlines()}
    names = ("pid", "ppid", "uid", "gid", "ruid", "rgid", "entity_id")
    lasting = [row for row in before if (then := after.get(row["pid"])) and all(row[n] == then[n] for n in names)]
    assert len(lasting) > 3
    assert os.getpid() in {row["pid"] for row in lasting}
    for row in lasting:
        if row["pid"] != os.getpid() and row["exe"] == os.path.realpath(sys.executable):
            continue  # other tests change their users and threads for moments
        assert [row[name] for name in names[:6]] == [int(field) for field in shown[row["pid"]][:6]]
        if row["pid"] == os.getpid():
            counted = sorted((row["threads"], after[row["pid"]]["threads"]))  # those of earlier tests may end
            assert counted[0] <= int(shown[row["pid"]][6]) <= counted[1]


def test_a_process_is_described_in_full(tmp_path: Path) -> None:
    before = time.time()
    with sleeper("sleep", "60", cwd=tmp_path) as pid:
        time.sleep(0.1)
        (row,) = ask(processes, pid=pid)
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert (row["name"], row["pid"], row["ppid"]) == ("sleep", pid, os.getpid())
        assert (row["uid"], row["ruid"], row["gid"], row["rgid"]) == (
            os.getuid(),
            os.getuid(),
            os.getgid(),
            os.getgid(),
        )
        assert row["startup"] is None
        assert row["priority"] == stat[15]
        assert row["exe"] == os.path.realpath(shutil.which("sleep") or "")
        assert row["cmdline"] == "sleep 60"
        assert row["cwd"] == os.path.realpath(tmp_path)
        assert row["state"] == "sleeping"
        assert row["threads"] == 1
        assert before - 0.03 <= row["start_time"] <= time.time()
        assert row["vsize"] == int(stat[20])
        assert 0 < row["rsize"] < row["vsize"]
        assert row["netns"] == Path("/proc/self/ns/net").stat().st_ino
        assert row["entity_id"] == entity_id(boot_id, pid, int(stat[19]))
        (me,) = ask(processes, pid=os.getpid())
        assert row["parent_entity_id"] == me["entity_id"]
        assert me["utime"] > 0
        assert me["start_time"] < row["start_time"]


def test_the_start_time_is_the_same_in_every_scan() -> None:
    assert {row["start_time"] for _ in range(50) for row in ask(processes, pid=os.getpid())} == {
        ask(processes, pid=os.getpid())[0]["start_time"]
    }


def test_a_pid_that_is_not_there_has_no_row() -> None:
    assert ask(processes, pid=2**22 + 1) == []
    assert ask(processes, pid=-1) == []
    assert ask(processes, pid=10**30) == []


def test_a_thread_is_not_a_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert Path(f"/proc/{thread.native_id}").exists()
        assert ask(processes, pid=thread.native_id) == []
    finally:
        done.set()
        thread.join()


def test_only_the_processes_in_question_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    really_open = os.open

    def recording(path: str, *arguments: int, **options: int) -> int:
        opened.append(path)
        return really_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", recording)
    assert [row["pid"] for row in ask(processes, columns=["pid", "name"], pid=[1, os.getpid()])] == [1, os.getpid()]
    assert {path for path in opened if path.startswith("/")} == {"/proc/1", f"/proc/{os.getpid()}"}
    assert {path for path in opened if not path.startswith("/")} <= {"stat", "status"}


def test_root_is_uid_0_and_unset_is_null() -> None:
    (init,) = ask(processes, pid=1)
    assert init["uid"] == 0
    assert init["parent_entity_id"] is None
    login = int(Path("/proc/self/loginuid").read_text()) if Path("/proc/self/loginuid").exists() else 2**32 - 1
    assert ask(processes, pid=os.getpid())[0]["loginuid"] == (None if login == 2**32 - 1 else login)


@pytest.mark.parametrize(
    "name",
    [b"a) S 1 (b", b"two\nlines", b"\xff\xfe\x80", b"tab\tand space", b"%s\\n", b")", "grün".encode(), b" "],
)
def test_any_name_is_kept_byte_for_byte(name: bytes) -> None:
    with child(lambda: set_name(name)) as pid:
        (row,) = ask(processes, pid=pid)
        assert to_bytes(row["name"]) == name
        assert row["ppid"] == os.getpid()
        assert row["uid"] == os.geteuid()


def test_an_executable_may_have_any_path_and_arguments(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/odd\n\xff name"
    shutil.copy(os.fsencode(shutil.which("sleep") or ""), program)
    with sleeper(program, b"60", b"1") as pid:
        (row,) = ask(processes, pid=pid)
        assert to_bytes(row["exe"]) == program
        assert to_bytes(row["cmdline"]) == program + b" 60 1"
        Path(os.fsdecode(program)).unlink()
        assert to_bytes(ask(processes, pid=pid)[0]["exe"]) == program + b" (deleted)"


@pytest.mark.parametrize("arguments", [["60", ""], ["60", "", ""], ["", "60"], ["a b", '"', "\\"]])
def test_arguments_can_be_turned_back(arguments: list[str]) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)", *arguments]
    with sleeper(*command) as pid:
        (row,) = ask(processes, pid=pid)
        assert (row["argv"], row["cmdline"]) == (command, " ".join(command))


def test_a_process_without_a_name_has_an_empty_command_line() -> None:
    with subprocess.Popen([""], executable="/bin/cat", stdin=subprocess.PIPE) as cat:
        until_sync(Path(f"/proc/{cat.pid}/cmdline").read_bytes)
        (row,) = ask(processes, pid=cat.pid)
    assert (row["argv"], row["cmdline"]) == ([""], "")


def test_the_padding_of_a_title_is_not_taken_for_empty_arguments() -> None:
    """As sshd, nginx and PostgreSQL do: the title is written over the arguments, and zeros over the rest."""
    code = """
import ctypes, time
from pathlib import Path
start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
ctypes.memset(start, 0, end - start)
ctypes.memmove(start, b"sshd: alice", 11)
print(flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as titled:
        assert titled.stdout is not None
        titled.stdout.readline()
        assert len(Path(f"/proc/{titled.pid}/cmdline").read_bytes()) > 100
        (row,) = ask(processes, pid=titled.pid)
        titled.kill()
    assert (row["argv"], row["cmdline"]) == (["sshd: alice"], "sshd: alice")


def test_a_command_line_of_a_megabyte_is_kept_whole() -> None:
    long = ["x" * 100_000] * 10
    with sleeper(sys.executable, "-c", "import time; time.sleep(60)", *long) as pid:
        (row,) = ask(processes, pid=pid)
        assert row["cmdline"].endswith(" ".join(long))


def test_secrets_in_command_lines_are_masked() -> None:
    access = AccessPolicy(AccessSettings(redact=("time",)))
    with sleeper(sys.executable, "-c", "import time; time.sleep(60)", "--password=hunter2") as pid:
        (row,) = ask(processes, access=access, pid=pid)
        assert row["argv"] == [sys.executable, "-c", "import ***; ***.sleep(60)", "--password=***"]
        assert row["cmdline"] == " ".join(row["argv"])


def test_a_zombie_has_a_row_without_released_resources() -> None:
    process = subprocess.Popen(["true"])
    until_sync(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    (row,) = ask(processes, pid=process.pid)
    assert row["state"] == "zombie"
    assert (row["exe"], row["cmdline"], row["cwd"]) == (None, None, None)
    process.wait()
    assert ask(processes, pid=process.pid) == []


def test_processes_that_end_meanwhile_are_left_out(tmp_path: Path) -> None:
    """Processes come and go all the time while the table is read: no error, no half-filled row."""
    stop = threading.Event()
    program = tmp_path / f"zz{secrets.token_hex(4)}"
    shutil.copy2("/bin/true", program)

    def churn() -> None:
        while not stop.is_set():
            subprocess.run([program], check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            for row in ask(processes):
                assert row["entity_id"]
                if row["name"] == program.name and row["state"] != "zombie":
                    assert row["ppid"] == os.getpid()
    finally:
        stop.set()
        thread.join()


def test_a_session_without_a_terminal_has_no_tty() -> None:
    with sleeper("sleep", "60", start_new_session=True) as pid:
        assert ask(processes, pid=pid)[0]["tty"] is None


def test_the_controlling_terminal_is_named() -> None:
    leader, follower = os.openpty()
    name = os.ttyname(follower).removeprefix("/dev/")

    def take_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    with child(take_terminal) as pid:
        assert ask(processes, pid=pid)[0]["tty"] == name
    os.close(leader)
    os.close(follower)


@pytest.mark.root
def test_effective_and_real_ids_are_distinguished() -> None:
    def become() -> None:
        os.setresgid(5, 6, 6)
        os.setresuid(1234, 2345, 0)

    with child(become) as pid:
        (row,) = ask(processes, pid=pid)
        assert (row["ruid"], row["uid"], row["rgid"], row["gid"]) == (1234, 2345, 5, 6)


@pytest.mark.root
def test_without_privileges_the_rest_of_a_row_is_still_there() -> None:
    """An unprivileged process sees all processes; what it may not see of others is null."""
    code = (
        "import os, sys\n"
        "from asking import ask\n"
        "from zeek_agent.tables.processes import processes\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "row = ask(processes, pid=int(sys.argv[1]))[0]\n"
        "assert row['uid'] == 0 and row['cmdline'] == 'sleep 60', row\n"
        "assert row['exe'] is None and row['cwd'] is None and row['netns'] is None, row\n"
    )
    with sleeper("sleep", "60") as pid:
        source = str(ROOT / "src")
        environment = {**os.environ, "PYTHONPATH": f"{source}:{SUPPORT}"}
        subprocess.run([sys.executable, "-c", code, str(pid)], check=True, env=environment, timeout=30)
