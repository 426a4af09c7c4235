"""Attacks on the path gate, generated: a mount of some kind shows a secret, and an attacker exchanges an ordinary file
or directory with some kind of link to it while a table is asked for what lies there.

`Attack.run` is a scene (see `mounting`): the agent is root, the attacker a process of its own.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asking import ask
from mounting import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    NOBODY,
    Counter,
    SilentFuse,
    bind,
    demand_running,
    exchange,
    mount,
    overlay,
    process,
    unmount,
)

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.host.files.hashing import ALGORITHMS
from zeek_agent.host.files.reads import FileReads
from zeek_agent.table import Table
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.files import files_columns, files_lines, files_list

MOUNTS: Final = ("bind", "rbind", "overlay", "other namespace", "chroot", "fuse")
LINKS: Final = ("symlink", "hard link", "magic link", "rename")
TABLES: Final[dict[str, Table]] = {table.name: table for table in (files_list, files_lines, files_columns, file_hashes)}
USERS: Final = {"root": 0, "nobody": NOBODY}

SECRET: Final = b"the-secret-that-must-not-be-read\n" * 129
"""Of a size that no other file here has."""
SECRET_TEXT: Final = "the-secret-that-must-not-be-read"
SECRET_HASHES: Final = tuple(hashlib.new(name, SECRET).hexdigest() for name in ALGORITHMS)
ORDINARY: Final = {"a": b"ordinary a\n", "m": b"ordinary m\nsecond line\n", "z": b"ordinary z\n"}
EXCHANGED: Final = b"ordinary while it is not exchanged\n"
LEAST_SWAPS: Final = 50


def senseless(mounted: str, link: str) -> str | None:
    """Why there is no such attack."""
    if (mounted, link) == ("fuse", "hard link"):
        return "a hard link lies on the file system of its file, and no file on FUSE is reached"
    return None


def tells_of_the_secret(row: dict[str, Any]) -> bool:
    """Whether a row has contents of the secret, or a hash of them."""
    text = repr(row)
    return SECRET_TEXT in text or any(digest in text for digest in SECRET_HASHES)


def shows(rows: list[dict[str, Any]], table: str, name: str, content: bytes) -> bool:
    """Whether a table's rows show an ordinary file as it is."""
    found = [row for row in rows if row["path"].endswith(f"/{name}")]
    if table == "files_list":
        return [(row["type"], row["size"]) for row in found] == [("file", len(content))]
    if table == "file_hashes":
        return [row["sha256"] for row in found] == [hashlib.sha256(content).hexdigest()]
    told = [row["content"] if table == "files_lines" else row["columns"]["c0"].encode() for row in found]
    return told == content.splitlines()


@dataclass
class Report:
    """What the tables told in all tries."""

    tries: int = 0
    leaks: list[str] = field(default_factory=list)
    """Rows that tell of the secret."""
    incomplete: list[str] = field(default_factory=list)
    """Ordinary files that a try missed, or told otherwise than they are."""
    exchanged: int = 0
    """Tries that saw the exchanged file while it was an ordinary one."""
    left_out: int = 0
    """Files that the tries counted as refused or skipped."""


@dataclass
class Attack:
    """One attack; `base` is an empty directory that everybody can reach."""

    mounted: str
    link: str
    table: str
    user: str
    base: Path
    fuse: SilentFuse
    tries: int
    swaps: Counter = field(default_factory=Counter)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    """Directory entries that the attacker exchanges, one pair after the other, each there and back."""
    jail: str = ""
    """The root directory of a process in a chroot, by its magic link."""

    def __post_init__(self) -> None:
        self.uid = USERS[self.user]
        self.vault = self.base / "tree" / "vault"
        self.users = self.base / "users"

    def run(self) -> Report:
        """Ask while the attack goes on."""
        mount("world", self.base, "tmpfs", data="mode=755")
        self.vault.mkdir(parents=True)
        if self.mounted == "rbind":
            mount("inner", self.vault, "tmpfs", data="mode=755")
        (self.vault / "secret").write_bytes(SECRET)
        (self.vault / "secret").chmod(0o600)
        self._make(self.users, ORDINARY)
        exchange_links = {
            "symlink": self._exchange_symlink,
            "hard link": self._exchange_hard_link,
            "magic link": self._exchange_magic_links,
            "rename": self._exchange_directories,
        }
        with ExitStack() as stack:
            pattern = exchange_links[self.link](stack)
            attacker = stack.enter_context(process(self._prepare, user=self.uid, again=self._swap))
            return self._ask(pattern, attacker)

    def _prepare(self) -> None:
        """Other test runs close pytest's directories to other users when they start, so names are relative."""
        os.chdir(self.base)

    def _swap(self) -> None:
        """One step of the attacker."""
        one, other = self.pairs[self.swaps.value // 2 % len(self.pairs)]
        exchange(*(os.fsencode(entry.relative_to(self.base)) for entry in (one, other)))
        self.swaps.add()

    # Asking

    def _ask(self, pattern: str, attacker: int) -> Report:
        rules = (f"{self.vault}/secret", f"{self.vault}/s*t")
        access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=rules))
        parameters = ["$0:text", "", "^$"] if self.table == "files_columns" else []
        report = Report()
        while report.tries < self.tries or self.swaps.value < LEAST_SWAPS or not self._met_both(report):
            demand_running(attacker)
            reads = FileReads()
            rows = ask(TABLES[self.table], pattern, *parameters, access=access, reads=reads)
            report.tries += 1
            report.left_out += reads.omissions().refused + reads.omissions().skipped
            report.leaks += [repr(row) for row in rows if tells_of_the_secret(row) or self._reaches_it(row)]
            report.incomplete += [name for name in ORDINARY if not shows(rows, self.table, name, ORDINARY[name])]
            report.exchanged += any(shows(rows, self.table, name, EXCHANGED) for name in ("exchanged", "secret"))
        return report

    def _met_both(self, report: Report) -> bool:
        """Whether both what may be read and what may not have been met, which on a busy machine takes more tries."""
        return report.exchanged > 0 and (report.left_out > 0 or self.table == "files_list")

    def _reaches_it(self, row: dict[str, Any]) -> bool:
        """Whether a row has the attributes of the secret, which nobody gets where nothing is entered."""
        entered = self.mounted not in ("other namespace", "fuse") and self.link != "magic link"
        return row.get("size") == len(SECRET) and not entered

    # What is exchanged: each returns the pattern to ask for

    def _exchange_symlink(self, stack: ExitStack) -> str:
        way = self._show(self.base / "shown", self.vault, stack)
        return self._exchange_file(lambda other: other.symlink_to(f"{way}/secret"))

    def _exchange_hard_link(self, stack: ExitStack) -> str:
        """What is shown is the attacker's own directory, with a hard link in it that root has made."""
        if self.mounted == "rbind":
            self.users = self.vault / "users"
            self._make(self.users, ORDINARY)
        pattern = self._exchange_file(lambda other: other.hardlink_to(self.vault / "secret"))
        way = self._show(self.base / "shown", self.users, stack)
        if self.mounted == "other namespace":  # nothing is reached there: a link leads to it
            (self.users / ".link").symlink_to(f"{way}/.other")
            self.pairs = [(self.users / "exchanged", self.users / ".link")]
            return pattern
        if self.mounted == "overlay":
            self.pairs = [(Path(way, "exchanged"), Path(way, ".other"))]
        return f"{way}/*"

    def _exchange_magic_links(self, stack: ExitStack) -> str:
        way = self._show(self.base / "shown", self.vault, stack)
        pattern = self._exchange_file(lambda other: other.symlink_to("nowhere"))
        for number, target in enumerate(self._held(way, stack)):
            (self.users / f".link{number}").symlink_to(target)
            self.pairs.append((self.users / "exchanged", self.users / f".link{number}"))
        return pattern

    def _exchange_directories(self, stack: ExitStack) -> str:
        """Of two directories one has the mount where the other has an ordinary directory."""
        inner = "inner/vault" if self.mounted == "rbind" else "inner"
        self._make(self.users / "directory" / inner, ORDINARY)
        self._make(self.users / "exchanged" / inner, {"secret": EXCHANGED})
        self._make(self.users / ".other", {})
        place = self.users / ".other" / "inner"
        if self.mounted == "other namespace":
            place.symlink_to(self._show(self.base / "shown", self.vault, stack))
        elif self.mounted == "chroot":
            self._show(self.users / ".other", self.vault, stack, place)
        else:
            self._show(place, self.vault, stack)
        self.pairs = [(self.users / "exchanged", self.users / ".other")]
        return f"{self.users}/*/{inner}/*"

    def _exchange_file(self, make: Callable[[Path], object]) -> str:
        """An ordinary file in the attacker's directory, and another entry."""
        (self.users / "exchanged").write_bytes(EXCHANGED)
        make(self.users / ".other")
        self.pairs = [(self.users / "exchanged", self.users / ".other")]
        return f"{self.users}/*"

    def _make(self, directory: Path, files: dict[str, bytes]) -> None:
        directory.mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        while directory != self.base:
            os.chown(directory, self.uid, self.uid)
            directory = directory.parent

    # How it is shown

    def _show(self, place: Path, source: Path, stack: ExitStack, inside: Path | None = None) -> str:
        """Show a directory by a mount; returns where it is reached."""
        place.mkdir(exist_ok=True)
        if self.mounted == "bind":
            bind(source, place)
        elif self.mounted == "rbind":
            bind(self.base / "tree", place, recursive=True)
            return f"{place}/{source.relative_to(self.base / 'tree')}"
        elif self.mounted == "overlay" and source == self.users:
            for name in ("lower", "work"):
                (self.base / name).mkdir()
            layers = f"lowerdir={self.base}/lower,upperdir={source},workdir={self.base}/work"
            mount("overlay", place, "overlay", data=layers)
        elif self.mounted == "overlay":
            overlay(place, source)
        elif self.mounted == "other namespace":
            alone = CLONE_NEWNS | (CLONE_NEWUSER if self.uid else 0)
            pid = stack.enter_context(process(lambda: bind(source, place), user=self.uid, namespaces=alone))
            return f"/proc/{pid}/root{place}"
        elif self.mounted == "chroot":
            inside = inside or place / "shown"
            for directory in (place / "proc", inside):
                directory.mkdir()
            mount("proc", place / "proc", "proc")
            bind(source, inside)
            alone = CLONE_NEWUSER if self.uid else 0
            pid = stack.enter_context(process(lambda: os.chroot(place), user=self.uid, namespaces=alone))
            self.jail = f"/proc/{pid}/root/{inside.relative_to(place)}"
            return str(inside)
        else:
            self.fuse.mount(place, uid=self.uid)
        return str(place)

    def _held(self, way: str, stack: ExitStack) -> list[str]:
        """The magic links to what is shown, and in it to the secret, of a process of the attacker."""
        held: list[mmap.mmap] = []

        def hold() -> None:
            os.dup2(os.open(way, os.O_PATH), 51)
            if self.mounted != "fuse":
                os.chdir(way)
                os.dup2(os.open("secret", os.O_PATH), 50)
                if not self.uid:
                    os.dup2(os.open("secret", os.O_RDONLY), 52)
                    held.append(mmap.mmap(52, 0, prot=mmap.PROT_READ))

        pid = stack.enter_context(process(hold, user=self.uid))
        links = [f"/proc/{pid}/fd/51/secret", f"/proc/{pid}/task/{pid}/fd/51/secret", f"/proc/{pid}/root{way}/secret"]
        if self.jail:
            links += [f"{self.jail}/secret", f"{self.base}/shown{self.jail}/secret"]
        if self.mounted != "fuse":
            links += [f"/proc/{pid}/cwd/secret", f"/proc/{pid}/fd/50"]
            if not self.uid:
                links += [f"/proc/{pid}/fd/52", *_mapped(pid)]
            assert all(Path(link).read_bytes() == SECRET for link in links)
        return links


class World:
    """A directory of which one thing changes at a moment that the test chooses; `reset` takes that back."""

    STRIKES: Final = (
        "link",
        "hard link",
        "directory link",
        "directory",
        "bind",
        "bind directory",
        "fuse",
        "fuse directory",
        "unmount",
    )

    def __init__(self, base: Path, fuse: SilentFuse) -> None:
        self._fuse = fuse
        self._base = base
        self._users = base / "users"
        self._file, self._directory = self._users / "exchanged", self._users / "directory"
        self._struck: str | None = None
        rules = tuple(f"{base}/vault/{name}" for name in ("secret", "exchanged", "**"))
        self._access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=rules))

    def make(self) -> None:
        """Called in the scene."""
        mount("world", self._base, "tmpfs", data="mode=755")
        for directory in (self._base / "vault", self._base / "covering", self._directory, self._users / ".directory"):
            directory.mkdir(parents=True)
        for name in ("secret", "exchanged"):
            (self._base / "vault" / name).write_bytes(SECRET)
        for name, content in ORDINARY.items():
            (self._users / name).write_bytes(content)
        for place in (self._file, self._base / "covering" / "exchanged"):
            place.write_bytes(EXCHANGED)
        for place in (self._directory, self._users / ".directory"):
            (place / "exchanged").hardlink_to(self._base / "vault" / "exchanged")
        (self._users / ".link").symlink_to("../vault/secret")
        (self._users / ".hard").hardlink_to(self._base / "vault" / "secret")
        (self._users / ".directories").symlink_to("../vault")
        (self._users / "link").symlink_to("exchanged")
        (self._users / "way").symlink_to("directory")
        bind(self._base / "covering", self._directory)

    def strike(self, how: str) -> None:
        """The attack, a single step."""
        self._struck = how
        if how == "link":
            self._exchange("exchanged", ".link")
        elif how == "hard link":
            self._exchange("exchanged", ".hard")
        elif how == "directory link":
            self._exchange("way", ".directories")
        elif how == "directory":
            self._exchange("way", ".directory")
        elif how == "bind":
            bind(self._base / "vault" / "secret", self._file)
        elif how == "bind directory":
            bind(self._base / "vault", self._directory)
        elif how == "fuse":
            self._fuse.mount(self._file, mode=0o100644)
        elif how == "fuse directory":
            self._fuse.mount(self._directory)
        else:
            unmount(self._directory)

    def reset(self) -> None:
        """As it was before the strike, if there was one."""
        how, self._struck = self._struck, None
        if how in ("link", "hard link", "directory link", "directory"):
            self.strike(how)
            self._struck = None
        elif how in ("bind", "fuse"):
            unmount(self._file)
        elif how in ("bind directory", "fuse directory"):
            unmount(self._directory)
        elif how == "unmount":
            bind(self._base / "covering", self._directory)

    WAYS: Final = ("*", "exchanged", "link", "directory/*", "way/exchanged", "way/../exchanged", "*/exchanged")
    """Patterns and names to ask for; the first gives all ordinary files."""

    def ask(self, table: str, way: str) -> list[dict[str, Any]]:
        parameters = ["$0:text", "", "^$"] if table == "files_columns" else []
        return ask(TABLES[table], f"{self._users}/{way}", *parameters, access=self._access)

    def _exchange(self, one: str, other: str) -> None:
        exchange(os.fsencode(self._users / one), os.fsencode(self._users / other))


def _mapped(pid: int) -> Iterator[str]:
    """The magic links to what a process has mapped of the secret."""
    return (str(link) for link in Path(f"/proc/{pid}/map_files").iterdir() if link.readlink().name == "secret")
