"""Windows' own part of the platform: access control lists, locks, pipes and file times. Wine suffices."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeek_agent import ownership, platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.file_lock import LockHeldError
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.hashing import hashes_of
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import FileReads
from zeek_agent.platforms import windows
from zeek_agent.platforms.winapi import folders, pipes, security

pytestmark = pytest.mark.skipif(platforms.HERE.key != "win32", reason="needs Windows, or Wine: make test-windows")


class UnknownFolders:
    """shell32.dll of a system without the folder."""

    def SHGetKnownFolderPath(self, *_: object) -> int:  # noqa: N802
        return 0x8007_0002 - (1 << 32)


HOLD = """
import sys
from pathlib import Path
from zeek_agent import platforms
lock = platforms.HERE.acquire_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_private_file_is_not_for_everyone(tmp_path: Path) -> None:
    file = tmp_path / "private"
    os.close(platforms.HERE.open_private(file, os.O_RDWR | os.O_CREAT))
    found = security.describe(file)
    assert "(A;" in found
    assert ";WD)" not in found


def test_a_private_directory_passes_the_check_of_a_state_directory(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "state"
    platforms.HERE.make_private_directory(directory)
    platforms.HERE.make_private_directory(directory)
    assert platforms.HERE.directory_exposure(directory) is None


def test_a_new_private_file_can_be_demanded(tmp_path: Path) -> None:
    file = tmp_path / "private"
    os.close(platforms.HERE.open_private(file, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    with pytest.raises(FileExistsError):
        platforms.HERE.open_private(file, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def test_an_open_file_has_the_path_with_long_names(tmp_path: Path) -> None:
    file = tmp_path / "a long name.txt"
    file.touch()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        shown = platforms.HERE.shown_path(platforms.HERE.opened_path(descriptor))
    finally:
        os.close(descriptor)
    assert Path(shown).samefile(file)
    assert shown.endswith("\\a long name.txt")


def test_a_hard_link_to_a_denied_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "denied").write_text("secret")
    (tmp_path / "harmless").hardlink_to(tmp_path / "denied")
    settings = AccessSettings(paths_deny=(str(tmp_path / "denied"),))
    gate = PortableGate(AccessPolicy(settings), FileReads())
    path = platforms.HERE.inner_path(str(tmp_path / "harmless"))
    with pytest.raises(RefusedError, match="hard link"):
        gate.open_regular(gate.walk(gate.root, path), path, Purpose.HASH)


def test_a_lock_excludes_other_processes_and_names_the_holder(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert platforms.HERE.is_lock_held(file)
        with pytest.raises(LockHeldError, match=rf"pid {process.pid}, since 20.* UTC"):
            platforms.HERE.acquire_lock(file)
        process.stdin.close()
    assert not platforms.HERE.is_lock_held(file)
    platforms.HERE.acquire_lock(file).close()


async def test_a_pipe_connects_clients_and_knows_their_processes() -> None:
    address = Path(rf"{windows.PIPES}zeek-agent-test-{os.getpid()}")
    peers: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(platforms.HERE.control.peer(writer))
        writer.write(b"answer to " + await reader.readline())
        await writer.drain()
        writer.close()

    def ask() -> bytes:
        connection = platforms.HERE.control.connect(address, 10)
        connection.send(b"question\n")
        answer = connection.read_line()
        connection.close()
        return answer

    with pytest.raises(FileNotFoundError):
        platforms.HERE.control.connect(address, 1)
    listener = await platforms.HERE.control.listen(address, None, "control", serve, backlog=5, stream_bytes=1000)
    assert [await asyncio.to_thread(ask) for _ in range(3)] == [b"answer to question\n"] * 3
    assert len(peers) == 3
    assert peers[0].startswith(" pid=")
    listener.close()


def test_the_pipes_owner_is_checked_against_this_user() -> None:
    assert pipes.OWNERS.format(user=security.user_sid()).startswith(f"O:{security.user_sid()}D:P")


def test_a_log_has_the_bytes_that_were_written(tmp_path: Path) -> None:
    descriptor = ownership.create_log(tmp_path / "a.log")
    os.write(descriptor, b"one\ntwo\n")
    os.close(descriptor)
    descriptor = ownership.open_log(tmp_path / "a.log")
    os.write(descriptor, b"three\r\n")
    os.close(descriptor)
    assert (tmp_path / "a.log").read_bytes() == b"one\ntwo\nthree\r\n"


def test_a_changed_file_gets_other_hashes_even_if_its_time_was_set_back(tmp_path: Path) -> None:
    file = tmp_path / "program.exe"
    file.write_bytes(b"first")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)

    def sha256() -> str:
        with file.open("rb", buffering=0) as opened:
            return hashes_of(opened, str(file), ("sha256",), FileReads(), lambda: None)["sha256"]

    first = sha256()
    file.write_bytes(b"other")
    os.utime(file, ns=times)
    assert sha256() != first


def test_the_machine_has_an_id() -> None:
    machine = platforms.HERE.machine_id()
    assert machine is not None
    assert len(machine) == 32


def test_the_directory_for_all_users_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ProgramData", r"C:\users\Public")
    assert folders.program_data() == Path(r"C:\ProgramData")
    assert platforms.HERE.system_state == Path(r"C:\ProgramData\ZeekAgent\state")


def test_a_folder_that_the_system_does_not_know_is_an_error() -> None:
    with pytest.raises(OSError, match="SHGetKnownFolderPath: 0x80070002"):
        folders.program_data(UnknownFolders())
