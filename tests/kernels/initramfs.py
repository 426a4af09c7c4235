"""A file system for a virtual machine, as the kernel unpacks it into memory: Python, our package, what they need."""

from __future__ import annotations

import gzip
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "ensurepip",
}
EMPTY = ("dev", "proc", "run", "sys", "tmp")


class Archive:
    """A cpio archive in the form "newc" (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}

    def directory(self, path: str) -> None:
        """Add a directory and those above it."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self._add("/".join(parts[:depth]), stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.directory(path.rpartition("/")[0])
        self._add(path.strip("/"), stat.S_IFREG | mode, content)

    def copy(self, source: Path, path: str | None = None) -> None:
        """Add a file under its own path, or under another."""
        self.file(path or str(source), source.read_bytes(), source.stat().st_mode & 0o777)

    def tree(self, source: Path, path: str | None = None) -> None:
        """Add the files below a directory; caches of other optimisation levels and static libraries are of no use."""
        for directory, below, names in os.walk(source):
            below[:] = [name for name in below if name not in LEFT_OUT and not name.startswith("config-")]
            target = f"{path or source}/{os.path.relpath(directory, source)}".removesuffix("/.")
            for name in names:
                if not re.search(r"\.opt-\d\.pyc$|\.a$", name):
                    self.copy(Path(directory, name), f"{target}/{name}")

    def packed(self) -> bytes:
        entries = [*self._entries.values(), _entry("TRAILER!!!", 0, b"", 0)]
        return gzip.compress(b"".join(entries), compresslevel=3)

    def _add(self, path: str, mode: int, content: bytes) -> None:
        if path and path not in self._entries:
            self._entries[path] = _entry(path, mode, content, len(self._entries) + 1)


def _entry(path: str, mode: int, content: bytes, inode: int) -> bytes:
    name = path.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return _padded(header) + _padded(content)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def build(init: Path, packages: Iterable[Path], load_library: Path, mapped: Iterable[Path]) -> bytes:
    """An archive that runs `init`, a Python program, with these packages in /agent, on this system's Python.

    `load_library` is opened by its name, and `mapped` are all shared objects that the program comes to use.
    """
    archive = Archive()
    interpreter = Path(sys.executable).resolve()
    archive.copy(interpreter)
    archive.tree(Path(sysconfig.get_path("stdlib")))
    for package in packages:
        if package.is_dir():
            archive.tree(package, f"/agent/{package.name}")
        else:
            archive.copy(package, f"/agent/{package.name}")
    archive.copy(load_library)
    for linked in sorted({path for binary in (interpreter, load_library, *mapped) for path in links(binary)}):
        archive.copy(linked)
    for name in EMPTY:
        archive.directory(name)
    archive.file("init", f"#!{interpreter}\n".encode() + init.read_bytes(), 0o755)
    return archive.packed()


def links(binary: Path) -> list[Path]:
    """What a program or shared object is linked with, by the names that the loader looks for."""
    output = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(?:=> )?(/\S+) \(0x", output)]
