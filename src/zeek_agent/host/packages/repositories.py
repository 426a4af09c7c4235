"""Configured package repositories: sources.list(5) of apt with the release files it has fetched, and those of yum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

SOURCE_LISTS: Final = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list")
SOURCES_DEB822: Final = ("/etc/apt/sources.list.d/*.sources",)
RELEASES: Final = "/var/lib/apt/lists/"
YUM_CONFIGURATION: Final = "/etc/yum.conf"
YUM_REPOSITORIES: Final = "/etc/yum.repos.d"
YUM_OPTIONS: Final = ("name", "baseurl", "mirrorlist", "metalink", "enabled", "gpgcheck", "gpgkey")
"""Options of a repository that describe it."""
_BINARY: Final = b"deb"
_OFF: Final = frozenset({b"no", b"false", b"without", b"off", b"disable"})
_OPTIONS: Final = re.compile(rb"\[[^\]]*\]\s*")
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS: Final = re.compile(rb"^[^/@]*@")
_QUOTED: Final = re.compile(rb"[\\|{}\[\]<>\"^~_=!@#$%&*]|[^\x21-\x7e]")
"""What apt writes as %XX in names of files, besides `/`, for which it writes `_`."""
_SIGNATURE: Final = b"-----BEGIN PGP SIGNATURE-----"
_VARIABLE: Final = re.compile(rb"\s*([A-Za-z0-9_.-]+)\s*=\s*(.*)", re.DOTALL)
_SECTION: Final = re.compile(rb"\s*\[(.*)\]\s*")


class AptSource(NamedTuple):
    """One suite of one repository of binary packages, as they are written."""

    written: bytes
    suite: bytes
    is_quoted: bool = False
    """Whether apt reads %XX in the URI as the character of that code, as it does in the one-line format only."""

    @property
    def uri(self) -> bytes:
        """The URI without slashes at its end."""
        return self.written.rstrip(b"/")

    @property
    def release_files(self) -> list[str]:
        """Names of the files in `RELEASES` that apt fetches for it, of which it has one."""
        place = _CREDENTIALS.sub(b"", self.written.partition(b"://")[2])
        place = unquote_to_bytes(place) if self.is_quoted else place
        suite = self.suite if self.suite.endswith(b"/") else b"dists/%s/" % self.suite
        path = place + (b"" if place.endswith(b"/") else b"/") + (b"" if suite == b"/" else suite)
        quoted = _QUOTED.sub(lambda found: b"%%%02x" % found[0][0], path).replace(b"/", b"_")
        return [f"{quoted.decode()}{name}" for name in ("InRelease", "Release")]


def sources_in_list(lines: Iterable[bytes]) -> Iterator[AptSource]:
    """The sources in the lines of a file in the one-line format."""
    for line in lines:
        words = line.partition(b"#")[0].strip().split(None, 1)
        if len(words) == 2 and words[0] == _BINARY:
            fields = _OPTIONS.sub(b"", words[1], count=1) if words[1].startswith(b"[") else words[1]
            yield from _sources(fields.split()[:1], fields.split()[1:2], is_quoted=True)


def sources_in_deb822(lines: Iterable[bytes]) -> Iterator[AptSource]:
    """The enabled sources in the lines of a file in the deb822 format."""
    for stanza in _stanzas(lines):
        is_enabled = stanza.get(b"enabled", b"yes").lower() not in _OFF
        if is_enabled and _BINARY in stanza.get(b"types", b"").split():
            yield from _sources(stanza.get(b"uris", b"").split(), stanza.get(b"suites", b"").split())


def release_fields(lines: Iterable[bytes]) -> dict[bytes, bytes]:
    """The fields of a release file, with lower-case names; without lists of several lines."""
    found: dict[bytes, bytes] = {}
    for line in lines:
        if line.startswith(_SIGNATURE):
            break
        name, colon, value = line.partition(b":")
        if colon and not name[:1].isspace():
            found.setdefault(name.lower(), value.strip())
    return found


def yum_sections(lines: Iterable[bytes]) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """The sections of a configuration file of yum with their options; lines that continue a value are joined to it."""
    section: bytes | None = None
    options: dict[bytes, bytes] = {}
    last = b""
    for line in lines:
        if not line.strip() or line.startswith((b"#", b";")):
            continue
        header = _SECTION.fullmatch(line)
        variable = _VARIABLE.fullmatch(line)
        if header is not None and not line[:1].isspace():
            if section is not None:
                yield section, options
            section, options, last = header[1], {}, b""
        elif line[:1].isspace() and last:
            options[last] = b"%s %s" % (options[last], line.strip())
        elif variable is not None and section is not None:
            last = variable[1]
            options[last] = variable[2].strip()
    if section is not None:
        yield section, options


def _sources(uris: Iterable[bytes], suites: Iterable[bytes], *, is_quoted: bool = False) -> Iterator[AptSource]:
    suites = list(suites)
    for uri in uris:
        if _SCHEME.match(uri) is not None:
            yield from (AptSource(uri, suite, is_quoted) for suite in suites)


def _stanzas(lines: Iterable[bytes]) -> Iterator[dict[bytes, bytes]]:
    """The stanzas of deb822(5), with lower-case names of fields; empty lines separate them."""
    stanza: dict[bytes, bytes] = {}
    last = b""
    for line in lines:
        if line.startswith(b"#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, last = {}, b""
        elif line[:1].isspace() and last:
            stanza[last] += b" " + line.strip()
        else:
            name, colon, value = line.partition(b":")
            if colon:
                last = name.strip().lower()
                stanza[last] = value.strip()
    if stanza:
        yield stanza
