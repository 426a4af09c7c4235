"""Log files belong to the agent, whatever the umask, and paths that other users can replace are known."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting import NOBODY

from zeek_agent.ownership import UntrustedError, create_log, distrusted, open_log


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=lambda mask: f"umask-{mask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user."""
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    return place


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory as /tmp is one."""
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o1777)
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def written(path: Path) -> str:
    """What is in the file after a line was logged to it."""
    with os.fdopen(open_log(path), "a") as file:
        file.write("line\n")
    return path.read_text()


def link_of_nobody(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


@pytest.mark.usefixtures("umask")
def test_a_new_log_file_is_its_owners_whatever_the_umask(tmp_path: Path) -> None:
    assert written(tmp_path / "a.log") == "line\n"
    os.close(create_log(tmp_path / "b.log"))
    assert (mode(tmp_path / "a.log"), mode(tmp_path / "b.log")) == (0o600, 0o600)


@pytest.mark.usefixtures("umask")
def test_a_group_that_its_directory_hands_on_can_read_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    assert written(tmp_path / "a.log") == "line\n"
    os.close(create_log(tmp_path / "b.log"))
    assert (mode(tmp_path / "a.log"), mode(tmp_path / "b.log")) == (0o640, 0o640)


@pytest.mark.parametrize(("before", "after"), [(0o666, 0o640), (0o644, 0o640), (0o600, 0o600), (0o640, 0o640)])
def test_a_file_that_is_there_is_narrowed_and_gets_no_more_than_it_had(tmp_path: Path, before: int, after: int) -> None:
    file = tmp_path / "a.log"
    file.write_text("old\n")
    file.chmod(before)
    assert written(file) == "old\nline\n"
    assert mode(file) == after


def test_own_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "logs").symlink_to("data")
    (tmp_path / "data" / "link").symlink_to("../data/./other")
    (tmp_path / "data" / "other").symlink_to(tmp_path / "data" / "file")
    assert written(tmp_path / "logs" / "link") == "line\n"
    assert (tmp_path / "data" / "file").read_text() == "line\n"
    assert mode(tmp_path / "data" / "file") == 0o600


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_log(tmp_path / "a")


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_can_be_named(place: str, capfd: pytest.CaptureFixture[str]) -> None:
    with os.fdopen(open_log(Path(place)), "w") as out:
        out.write("line\n")
    assert capfd.readouterr().out == "line\n"


def test_a_device_can_be_named_and_keeps_its_mode() -> None:
    before = mode(Path("/dev/null"))
    os.close(open_log(Path("/dev/null")))
    assert mode(Path("/dev/null")) == before


def test_a_pipe_without_a_reader_does_not_hold_the_agent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        open_log(tmp_path / "pipe")


@pytest.mark.root
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, shared: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    with pytest.raises(UntrustedError, match=f"symbolic link a.log .* belongs to uid {NOBODY}"):
        open_log(link_of_nobody(shared / "a.log", victim))
    with pytest.raises(UntrustedError, match=f"symbolic link logs .* belongs to uid {NOBODY}"):
        open_log(link_of_nobody(shared / "logs", tmp_path) / "victim")
    with pytest.raises(UntrustedError):
        create_log(shared / "logs" / "new")
    assert victim.read_text() == "mine\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.root
def test_own_links_that_lead_through_those_of_another_user_are_not_followed(tmp_path: Path, theirs: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    link_of_nobody(theirs / "inner", victim)
    (tmp_path / "outer").symlink_to(theirs / "inner")
    with pytest.raises(UntrustedError):
        open_log(tmp_path / "outer")
    assert victim.read_text() == "mine\n"


@pytest.mark.root
def test_a_link_that_others_could_replace_is_not_followed(theirs: Path, tmp_path: Path) -> None:
    (theirs / "a.log").symlink_to(tmp_path / "a.log")
    with pytest.raises(UntrustedError, match=f"belongs to uid {NOBODY}"):
        open_log(theirs / "a.log")


@pytest.mark.root
def test_a_file_of_another_user_is_not_written(shared: Path) -> None:
    file = shared / "a.log"
    file.write_text("theirs\n")
    file.chmod(0o666)
    os.chown(file, NOBODY, NOBODY)
    with pytest.raises(UntrustedError, match=f"it belongs to uid {NOBODY}"):
        open_log(file)
    assert (file.read_text(), mode(file)) == ("theirs\n", 0o666)


@pytest.mark.root
def test_a_file_that_another_user_has_linked_here_is_not_written(theirs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    victim.chmod(0o644)
    (theirs / "a.log").hardlink_to(victim)
    with pytest.raises(UntrustedError, match="has another hard link"):
        open_log(theirs / "a.log")
    assert (victim.read_text(), mode(victim)) == ("mine\n", 0o644)


@pytest.mark.root
def test_a_file_in_another_users_directory_may_be_named(theirs: Path) -> None:
    assert written(theirs / "a.log") == "line\n"


def test_own_files_are_trusted_even_behind_own_links_and_in_a_shared_directory(tmp_path: Path, shared: Path) -> None:
    (shared / "file").touch()
    (tmp_path / "link").symlink_to(shared / "file")
    assert distrusted(shared / "file") is None
    assert distrusted(tmp_path / "link") is None
    with pytest.raises(FileNotFoundError):
        distrusted(tmp_path / "absent")


@pytest.mark.parametrize("bits", [0o757, 0o775])
def test_files_below_a_directory_that_others_can_write_are_not_trusted(tmp_path: Path, bits: int) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "deep" / "down" / "file").touch()
    (tmp_path / "deep").chmod(bits)
    assert f"is writable by others (mode {bits:04o})" in str(distrusted(tmp_path / "deep" / "down" / "file"))
    (tmp_path / "deep").chmod(0o1777)
    assert distrusted(tmp_path / "deep" / "down" / "file") is None


@pytest.mark.root
def test_files_that_another_user_owns_or_linked_are_not_trusted(theirs: Path, shared: Path, tmp_path: Path) -> None:
    (theirs / "mine").touch()
    assert f"a directory on the path belongs to uid {NOBODY}" in str(distrusted(theirs / "mine"))
    (shared / "file").touch()
    os.chown(shared / "file", NOBODY, NOBODY)
    assert distrusted(shared / "file") == f"it belongs to uid {NOBODY}"
    (tmp_path / "victim").touch()
    link_of_nobody(shared / "link", tmp_path / "victim")
    assert "the symbolic link link on the path" in str(distrusted(shared / "link"))
