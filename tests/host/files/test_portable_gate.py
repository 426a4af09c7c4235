"""The path gate of macOS and Windows, which decides by the file that it has opened."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy, Contents
from zeek_agent.config.sections import AccessSettings
from zeek_agent.host.files import portable
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.portable import PortableGate, demand_local
from zeek_agent.host.files.reads import FileReads
from zeek_agent.platforms.darwin import Darwin
from zeek_agent.platforms.windows import Windows

SECRET: Final = "secret"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")


class Mac(Darwin):
    """macOS's rules on a system that need not be one."""

    def opened_path(self, descriptor: int) -> str:
        return platforms.of(sys.platform).opened_path(descriptor)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Darwin:
    here = Mac()
    monkeypatch.setattr(platforms, "HERE", here)
    return here


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody may enter."""
    above = Path(tempfile.gettempdir())
    for directory in (tmp_path, *(each for each in tmp_path.parents if each != above and each.is_relative_to(above))):
        directory.chmod(0o755)
    return tmp_path


def read(path: Path | str, purpose: Purpose = Purpose.HASH, **settings: Any) -> str:
    """The contents of a file through the gate. Raises RefusedError and OSError."""
    protected = settings.pop("protected", ())
    gate = PortableGate(AccessPolicy(AccessSettings(**settings), protected), FileReads())
    opened = gate.open_regular(gate.walk(gate.root, str(path)), str(path), purpose)
    assert opened is not None
    with opened.file as file:
        return file.read().decode()


def test_an_ordinary_file_is_opened(place: Path) -> None:
    (place / "file").write_text("text")
    assert read(place / "file") == "text"


def test_a_link_does_not_lead_to_a_denied_file(place: Path) -> None:
    (place / "denied").write_text(SECRET)
    (place / "link").symlink_to(place / "denied")
    with pytest.raises(RefusedError, match="denied"):
        read(place / "link", paths_deny=(f"{place}/denied",))


def test_a_hard_link_to_a_denied_file_is_refused(place: Path) -> None:
    (place / "denied").write_text(SECRET)
    (place / "harmless").hardlink_to(place / "denied")
    with pytest.raises(RefusedError, match="hard link"):
        read(place / "harmless", paths_deny=(f"{place}/denied",))


def test_a_hard_link_to_a_file_of_the_agent_is_refused(place: Path) -> None:
    state = place / "state"
    state.mkdir()
    (state / "dangling").symlink_to("nothing")
    (state / "key").write_text(SECRET)
    (place / "harmless").hardlink_to(state / "key")
    with pytest.raises(RefusedError, match="hard link"):
        read(place / "harmless", protected=(str(state),))


def test_other_files_with_hard_links_are_opened(place: Path) -> None:
    (place / "one").write_text("text")
    (place / "two").hardlink_to(place / "one")
    assert read(place / "two", paths_deny=(f"{place}/denied",)) == "text"


def test_a_directory_that_is_exchanged_before_the_file_is_opened_does_not_help(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("harmless", "denied"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)

    def exchanged(path: str, flags: int) -> int:
        (place / "harmless").rename(place / "moved")
        (place / "harmless").symlink_to("denied")
        return os_open(path, flags)

    os_open = os.open
    monkeypatch.setattr(portable.os, "open", exchanged)
    with pytest.raises(RefusedError, match="denied"):
        read(place / "harmless/file", paths_deny=(f"{place}/denied/**",))


def test_contents_below_a_private_directory_are_not_public(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AccessPolicy, "contents", lambda *_: Contents.PUBLIC)
    private = place / "private"
    private.mkdir(mode=0o700)
    (private / "file").write_text(SECRET)
    (private / "file").chmod(0o644)
    with pytest.raises(RefusedError, match="readable by every local user"):
        read(private / "file", Purpose.CONTENTS)
    private.chmod(0o755)
    assert read(private / "file", Purpose.CONTENTS) == SECRET


def test_a_log_in_a_directory_that_everybody_can_change_is_not_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccessPolicy, "contents", lambda *_: Contents.PRIVATE)
    (place / "log").write_text(SECRET)
    (place / "log").chmod(0o600)
    place.chmod(0o777)
    with pytest.raises(RefusedError, match="readable by every local user"):
        read(place / "log", Purpose.CONTENTS)


@pytest.mark.parametrize("name", ["DENIED", "\u0064enied", "denIed"])
def test_case_does_not_matter_on_a_mac(mac: Darwin, place: Path, name: str) -> None:
    (place / name).write_text(SECRET)
    with pytest.raises(RefusedError, match="denied"):
        read(place / name, paths_deny=(f"{place}/denied",))


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ("/etc/master.passwd", "/etc/ma\u017fter.pa\u017f\u017fwd"),
        ("/**/\u00e9t\u00e9", "/x/e\u0301te\u0301"),
        ("/**/e\u0301t\u00e9", "/x/\u00c9T\u00c9"),
        ("/**/kerberos", "/x/\u212aerberos"),
        ("/etc/x", "/private/etc/x"),
        ("/private/etc/x", "/etc/x"),
        ("/private/**", "/VAR/x"),
        ("/Users/me/x", "/System/Volumes/Data/Users/me/x"),
        ("/System/Volumes/Data/Users/me/x", "/users/me/x"),
        ("/etc/x", "/system/volumes/data/private/etc/x"),
        ("/System/Volumes/Data/private/var/**", "/var/x"),
    ],
)
def test_a_rule_denies_a_file_under_each_of_its_names_on_a_mac(mac: Darwin, rule: str, path: str) -> None:
    assert AccessPolicy(AccessSettings(paths_deny=(rule,))).denies(path)


def test_an_exclusion_from_a_list_holds_under_each_name_on_a_mac(mac: Darwin) -> None:
    policy = AccessPolicy(AccessSettings(paths_allow=("/**", "!/etc/x"), files_allow=("/**", "!/var/x")))
    assert not policy.allows("/private/etc/x")
    assert policy.allows("/private/etc/y")
    assert policy.contents("/etc/y") is Contents.CONFIGURED
    assert AccessPolicy(AccessSettings(files_allow=("/**", "!/var/x"))).contents("/private/var/x") is Contents.PUBLIC


def test_configuration_is_public_on_a_mac_where_its_directory_really_is(mac: Darwin) -> None:
    policy = AccessPolicy()
    assert policy.contents("/private/etc/hosts") is Contents.PUBLIC
    assert policy.contents("/private/var/log/system.log") is Contents.PRIVATE
    assert policy.contents("/Users/me/notes") is Contents.UNLISTED


@pytest.mark.parametrize(
    "path", ["/.vol/16777220/2", "/.VOL/1/2", "/etc/hosts/..namedfork/data", "/x/..NamedFork/rsrc"]
)
def test_files_are_not_opened_by_number_nor_by_fork_on_a_mac(mac: Darwin, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        mac.native_path(path)


def status(tag: int = 0) -> Any:
    return SimpleNamespace(st_mode=stat.S_IFDIR, st_reparse_tag=tag)


LINK, JUNCTION, MOUNTED_CLOUD = 0xA000_000C, 0xA000_0003, 0xA000_0027


def follow(monkeypatch: pytest.MonkeyPatch, links: dict[str, tuple[int, str]]) -> list[str]:
    """The paths that are looked at on the way to a file on Windows, with these links."""
    monkeypatch.setattr(platforms, "HERE", Windows())
    seen: list[str] = []

    def lstat(path: str) -> Any:
        seen.append(path)
        return status(links[path][0] if path in links else 0)

    demand_local("/C:/a/link/file", lstat, lambda path: links[path][1])
    return seen


@pytest.mark.parametrize(
    ("tag", "target", "last"),
    [
        (LINK, "b", "C:\\a\\b\\file"),
        (LINK, "..\\b", "C:\\b\\file"),
        (LINK, "\\b", "C:\\b\\file"),
        (LINK, "D:\\b", "D:\\b\\file"),
        (JUNCTION, "\\\\?\\D:\\b", "D:\\b\\file"),
        (JUNCTION, "\\??\\D:\\b", "D:\\b\\file"),
    ],
)
def test_links_between_drives_of_windows_are_followed(
    monkeypatch: pytest.MonkeyPatch, tag: int, target: str, last: str
) -> None:
    assert follow(monkeypatch, {"C:\\a\\link": (tag, target)})[-1] == last


@pytest.mark.parametrize(
    ("tag", "target"),
    [
        (LINK, "\\\\evil\\share"),
        (LINK, "//evil/share"),
        (LINK, "\\\\?\\UNC\\evil\\share"),
        (LINK, "\\??\\UNC\\evil\\share"),
        (LINK, "\\\\.\\PhysicalDrive0"),
        (LINK, "\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy1"),
        (LINK, "file:stream"),
        (LINK, "NUL"),
        (JUNCTION, "\\??\\Volume{01234567-89ab-cdef-0123-456789abcdef}\\"),
        (MOUNTED_CLOUD, "C:\\b"),
        (LINK, "link"),
        (LINK, ".."),
    ],
)
def test_links_that_lead_off_the_drives_of_windows_are_refused(
    monkeypatch: pytest.MonkeyPatch, tag: int, target: str
) -> None:
    links = {"C:\\a\\link": (tag, target), "C:\\file": (LINK, "\\\\evil\\share")}
    with pytest.raises(RefusedError, match="this host's drives"):
        follow(monkeypatch, links)


@pytest.mark.parametrize(
    "path",
    [
        "/Users/me/Library/Keychains/login.keychain-db",
        "/private/var/db/dslocal/nodes/Default/users/me.plist",
        "/private/etc/kcpassword",
        "/Library/Application Support/com.apple.TCC/TCC.db",
        "/Users/me/Library/Cookies/Cookies.binarycookies",
        "/private/var/vm/sleepimage",
        "/Users/me/.SSH/ID_ED25519",
    ],
)
def test_secrets_of_macos_are_denied_by_default(mac: Darwin, path: str) -> None:
    assert AccessPolicy().denies(path)


@pytest.mark.parametrize(
    "path",
    [
        r"C:\Windows\System32\config\SAM",
        r"c:\windows\system32\CONFIG\RegBack\SECURITY",
        r"C:\Users\me\NTUSER.DAT",
        r"C:\Users\me\ntuser.dat.LOG1",
        r"C:\Windows\NTDS\ntds.dit",
        r"C:\Users\me\AppData\Roaming\Microsoft\Protect\S-1-5-21-1\key",
        r"C:\Users\me\AppData\Local\Microsoft\Credentials\0123",
        r"C:\ProgramData\Microsoft\Crypto\RSA\MachineKeys\0123",
        r"C:\Users\me\AppData\Local\Google\Chrome\User Data\Local State",
        r"C:\Users\me\AppData\Local\Google\Chrome\User Data\Default\Login Data",
        r"C:\Users\me\AppData\Roaming\Mozilla\Firefox\Profiles\x\key4.db",
        r"C:\Windows\Panther\Unattend.xml",
        r"C:\Users\me\AppData\Roaming\Microsoft\Windows\PowerShell\PSReadLine\ConsoleHost_history.txt",
        r"C:\Users\me\.ssh\id_rsa",
        r"C:\hiberfil.sys",
        r"C:\Windows\MEMORY.DMP",
    ],
)
def test_secrets_of_windows_are_denied_by_default(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(platforms, "HERE", Windows())
    assert AccessPolicy().denies(path)
    assert AccessPolicy().denies(path.replace("\\", "/"))
