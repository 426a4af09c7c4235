"""Destinations: a Zeek or a bus to connect to, as one canonical URL, and addresses to listen on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from zeek_agent.errors import UsageError

PATH: Final = "/v1/messages/json"
"""Of Zeek's WebSocket server."""
DEFAULT_PORT: Final = 27759
BUS_PORT: Final = 4222
"""Default port of NATS servers."""
BUS_SCHEMES: Final = ("nats", "tls+nats")

_LISTEN = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\s]+):\d{1,5}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


@dataclass(frozen=True, slots=True)
class Destination:
    """A WebSocket server, or the servers of a bus; `str` gives its name or else the canonical URL, which identifies it
    everywhere."""

    scheme: str
    host: str
    port: int
    path: str = PATH
    name: str | None = None
    others: tuple[tuple[str, int], ...] = ()
    """Further servers of a bus: hosts and ports."""

    @property
    def is_tls(self) -> bool:
        return self.scheme in {"wss", "tls+nats"}

    @property
    def is_bus(self) -> bool:
        return self.scheme in BUS_SCHEMES

    @property
    def url(self) -> str:
        servers = ",".join(_host_and_port(host, port) for host, port in ((self.host, self.port), *self.others))
        return f"{self.scheme}://{servers}{self.path}"

    @property
    def servers(self) -> list[str]:
        """The URL of each server of a bus, as NATS writes it."""
        scheme = "tls" if self.is_tls else "nats"
        return [f"{scheme}://{_host_and_port(host, port)}" for host, port in ((self.host, self.port), *self.others)]

    @property
    def title(self) -> str:
        """The server as named in a sentence."""
        if self.is_bus:
            return f"the bus at {self.url}"
        return f"the {self.name} collector" if self.name else f"Zeek at {self.url}"

    def __str__(self) -> str:
        return self.name or self.url


EMBEDDED: Final = Destination("ws", "localhost", DEFAULT_PORT, name="embedded")
"""The embedded collector, which runs in the agent's process; its URL is only used in the opening handshake."""


def parse(text: str) -> Destination:
    """Parse `ws://host[:port][/path]`, `wss://…` or `host[:port]`, which means `ws`; brackets are for IPv6 addresses.

    Servers of a bus are `nats://host[:port][,host[:port]…]` or `tls+nats://…`. The default port is Zeek's, 27759, and
    on the bus NATS', 4222. Raises UsageError for anything else.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    try:
        if scheme.lower() in BUS_SCHEMES:
            return _from_bus_url(scheme.lower(), rest)
        return _from_url(text) if separator else _from_bare(text)
    except ValueError as error:
        shown = f"{scheme}://…@{rest.rpartition('@')[2]}" if "@" in rest else text
        raise UsageError(
            f"not a destination: {shown!r} ({error}); write ws://host:port, wss://host:port, nats://host:port or "
            "tls+nats://host:port"
        ) from None


def parse_all(texts: Sequence[str]) -> tuple[Destination, ...]:
    """Parse a list of destinations; all servers on the bus become one destination. Raises UsageError."""
    parsed: list[Destination] = []
    bus: int | None = None
    for text in texts:
        one = parse(text)
        if bus is not None and "://" not in text:
            raise UsageError(
                f"not clear whether {text!r} is a Zeek or another server of the bus: write ws://{text} or "
                f"{parsed[bus].scheme}://{text}"
            )
        if not one.is_bus or bus is None:
            bus = len(parsed) if one.is_bus else bus
            parsed.append(one)
        elif one.scheme != parsed[bus].scheme:
            raise UsageError("servers of the bus are either all nats:// or all tls+nats://")
        else:
            first = parsed[bus]
            servers = dict.fromkeys((*first.others, (one.host, one.port), *one.others))
            others = tuple(server for server in servers if server != (first.host, first.port))
            parsed[bus] = replace(first, others=others)
    return tuple(dict.fromkeys(parsed))


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


def _from_bus_url(scheme: str, text: str) -> Destination:
    if "@" in text:
        raise ValueError("a URL cannot have credentials: put those of NATS into a file that bus.credentials names")
    servers: dict[tuple[str, int], None] = {}
    for server in text.removesuffix("/").split(","):
        parts = urlsplit(f"{scheme}://{server.strip()}")
        if parts.path or parts.query or parts.fragment:
            raise ValueError("only scheme, hosts and ports may be given")
        port = BUS_PORT if parts.port is None else parts.port
        if port == 0:
            raise ValueError("no such port: 0")
        servers[_host(parts.hostname or ""), port] = None
    (host, port), *others = servers
    return Destination(scheme, host, port, path="", others=tuple(others))


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str) -> str:
    if ":" in text:
        address, percent, zone = text.partition("%")
        return f"{ipaddress.IPv6Address(address)}{percent}{zone}"
    if _HOST.fullmatch(text) is None:
        raise ValueError("no host" if not text else "not a host name")
    return text
