"""Destinations: a Zeek to connect to, as one canonical URL, and addresses to listen on."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from zeek_agent.errors import UsageError

PATH: Final = "/v1/messages/json"
"""Of Zeek's WebSocket server."""
DEFAULT_PORT: Final = 27759

_LISTEN = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\s]+):\d{1,5}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


@dataclass(frozen=True, slots=True)
class Destination:
    """A WebSocket server; `str` gives its name or else the canonical URL, which identifies it everywhere."""

    scheme: str
    host: str
    port: int
    path: str = PATH
    name: str | None = None

    @property
    def is_tls(self) -> bool:
        return self.scheme == "wss"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def title(self) -> str:
        """The server as named in a sentence."""
        return f"the {self.name} collector" if self.name else f"Zeek at {self.url}"

    def __str__(self) -> str:
        return self.name or self.url


EMBEDDED: Final = Destination("ws", "localhost", DEFAULT_PORT, name="embedded")
"""The embedded collector, which runs in the agent's process; its URL is only used in the opening handshake."""


def parse(text: str) -> Destination:
    """Parse `ws://host[:port][/path]`, `wss://…` or `host[:port]`, which means `ws`; brackets are for IPv6 addresses.

    The default port is 27759, Zeek's default. Raises UsageError for anything else.
    """
    text = text.strip()
    try:
        return _from_bare(text) if "://" not in text else _from_url(text)
    except ValueError as error:
        raise UsageError(f"not a destination: {text!r} ({error}); write ws://host:port or wss://host:port") from None


def formerly_embedded(listen: str) -> tuple[str, ...]:
    """The names of the embedded collector in versions in which it listened on TCP at `listen`, HOST:PORT."""
    host, port = parse_listen(listen)
    if port == 0:
        return ()
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    return tuple(str(parse(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")) for host in hosts)


def parse_listen(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, where an IPv6 address is in brackets. Raises ValueError for anything else."""
    if _LISTEN.fullmatch(text) is None or int(text.rpartition(":")[2]) > 65535:
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def parse_local_listen(text: str) -> Path | tuple[str, int]:
    """Parse `unix:PATH` with an absolute path, or HOST:PORT with an address of the loopback interface.

    Raises ValueError for anything else.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"expected an absolute path, got {str(path)!r}")
        return path
    host, port = parse_listen(text)
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise ValueError(f"expected a loopback address such as 127.0.0.1, got {host!r}")
    return str(address), port


def _from_bare(text: str) -> Destination:
    try:
        return Destination("ws", str(ipaddress.IPv6Address(text)), DEFAULT_PORT)
    except ValueError:
        return _from_url(f"ws://{text}")


def _from_url(text: str) -> Destination:
    parts = urlsplit(text)
    if parts.scheme not in {"ws", "wss"}:
        raise ValueError(f"no such scheme: {parts.scheme}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("only scheme, host, port and path may be given")
    port = DEFAULT_PORT if parts.port is None else parts.port
    if port == 0:
        raise ValueError("no such port: 0")
    path = PATH if parts.path in {"", "/"} else parts.path
    return Destination(parts.scheme, _host(parts.hostname or ""), port, path)


def _host(text: str) -> str:
    if ":" in text:
        address, percent, zone = text.partition("%")
        return f"{ipaddress.IPv6Address(address)}{percent}{zone}"
    if _HOST.fullmatch(text) is None:
        raise ValueError("no host" if not text else "not a host name")
    return text
