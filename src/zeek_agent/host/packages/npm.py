"""Node packages, from the `package.json` of each (npm's documentation, package.json(5))."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import matching
from zeek_agent.host.files.json_documents import JsonError, decoded
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.whole import literal, read_whole
from zeek_agent.text import from_os

MANIFEST_BYTES_MAX: Final = 4 << 20
_PATTERNS: Final = ("*/package.json", "@*/*/package.json")


class NodePackage(NamedTuple):
    """A package; fields that its manifest lacks are None. `path` is that of the manifest."""

    name: str | None
    version: str | None
    description: str | None
    author: str | None
    license: str | None
    homepage: str | None
    path: str
    depth: int


def node_packages(
    gate: Gate | PortableGate, site: str, depth_max: int, check: Callable[[], None]
) -> Iterator[NodePackage]:
    """The packages in the `node_modules` of a directory (depth 0), and those in theirs, to that depth.

    `site` is in the form of `os.fsdecode`. No directory is searched twice, so that links cannot make a circle. Where a
    manifest may not be read, which the gate's `reads` count, the name is that of its directory.
    """
    searched: set[tuple[int, int]] = set()
    waiting = [(site.rstrip("/"), 0)]
    while waiting:
        directory, depth = waiting.pop()
        modules = f"{directory}/node_modules"
        identity = _identity(gate, modules)
        if identity is None or identity in searched:
            continue
        searched.add(identity)
        for pattern in _PATTERNS:
            for match in matching(gate, f"{literal(modules)}/{pattern}", check, explain=False):
                check()
                content = read_whole(match, gate.reads, MANIFEST_BYTES_MAX, check)
                package = match.path.rpartition("/")[0]
                yield _package(content, package.removeprefix(f"{modules}/"), match.path, depth)
                if depth < depth_max:
                    waiting.append((package, depth + 1))


def _identity(gate: Gate | PortableGate, directory: str) -> tuple[int, int] | None:
    """Device and inode of a directory that may be entered."""
    try:
        status = gate.walk(gate.root, directory).status
    except (RefusedError, OSError):
        return None
    return (status.device, status.inode) if status.is_directory else None


def _package(content: bytes | None, name: str, path: str, depth: int) -> NodePackage:
    try:
        manifest = decoded(content) if content is not None else None
    except JsonError:
        manifest = None
    if not isinstance(manifest, dict):
        return NodePackage(from_os(name), *(None,) * 5, from_os(path), depth)
    return NodePackage(
        _text(manifest, "name"),
        _text(manifest, "version"),
        _text(manifest, "description"),
        _text_or_member(manifest, "author", "name"),
        _text_or_member(manifest, "license", "url"),
        _text(manifest, "homepage"),
        from_os(path),
        depth,
    )


def _text(manifest: dict[str, Any], key: str) -> str | None:
    """A text; empty if it is something else, None without the key."""
    if key not in manifest:
        return None
    return manifest[key] if isinstance(manifest[key], str) else ""


def _text_or_member(manifest: dict[str, Any], key: str, member: str) -> str | None:
    """A text, or the text that is a member of an object."""
    value = manifest.get(key)
    if isinstance(value, dict):
        value = value.get(member)
    return value if isinstance(value, str) else None
