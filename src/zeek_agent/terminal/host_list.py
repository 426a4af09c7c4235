"""The hosts that a collector remembers, for `zeek-agent hosts`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zeek_agent import platforms
from zeek_agent.collector import hosts_file
from zeek_agent.collector.log_files import LOCK
from zeek_agent.errors import ZeekAgentError
from zeek_agent.schema import ZeekType
from zeek_agent.terminal import responders
from zeek_agent.terminal.console import Mode

if TYPE_CHECKING:
    from zeek_agent.collector.hosts import Host
    from zeek_agent.config.declarations import Config
    from zeek_agent.terminal.console import Printer

COLUMNS: Final = [
    (name, ZeekType.parse(kind))
    for name, kind in (
        ("host", "text"),
        ("state", "text"),
        ("since", "time"),
        ("last_seen", "time"),
        ("address", "text"),
        ("version", "text"),
        ("system", "text"),
        ("rows", "count"),
        ("lost", "count"),
        ("gaps", "count"),
        ("last_gap", "time"),
        ("errors", "count"),
        ("last_error", "text"),
        ("conflicts", "count"),
        ("connects", "count"),
        ("first_seen", "time"),
        ("id", "text"),
        ("instance", "text"),
        ("addresses", "set[text]"),
        ("certificate", "text"),
        ("gateway", "text"),
    )
]
MAIN: Final = (
    "host", "state", "last_seen", "address", "gateway", "version", "lost", "gaps", "errors", "conflicts", "id",
)  # fmt: skip
"""The columns of a table, which is to fit on a terminal."""
UNKNOWN: Final = "unknown"
"""State of a host that was not offline when the collector ended."""


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """The hosts in a log directory. `notices` are for people."""

    hosts: Sequence[Host]
    is_collecting: bool
    """Whether a collector writes to the directory now."""
    notices: Sequence[str]

    def state(self, host: Host) -> str:
        return host.state if self.is_collecting or host.state in ("offline", "shutdown") else UNKNOWN


@dataclass(frozen=True, slots=True)
class Filters:
    """Which hosts to print."""

    connected: bool = False
    offline: bool = False
    losses: bool = False
    patterns: Sequence[str] = ()

    def match(self, host: Host, state: str) -> bool:
        return (
            (not self.connected or state == "connected")
            and (not self.offline or state == "offline")
            and (not self.losses or bool(host.lost or host.gaps or host.errors or host.conflicts))
            and (not self.patterns or any(self._names(host, pattern) for pattern in self.patterns))
        )

    def _names(self, host: Host, pattern: str) -> bool:
        names = (host.hostname, host.id, host.peer, *host.addresses)
        return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in names if name)


def directory(config: Config, origins: Mapping[str, str]) -> Path:
    """The log directory that the user means."""
    if origins.get("collector.logs", "default") == "default":
        try:
            responder = responders.connect(config)
        except ZeekAgentError:
            pass  # no agent that could tell
        else:
            try:
                embedded = responders.status(responder).get("collector")
            finally:
                responder.close()
            if embedded is not None:
                return Path(embedded)
    return Path(config.collector.logs).absolute()


def read(directory: Path) -> KnownHosts:
    """The hosts in a log directory. Raises ZeekAgentError if there are none, or they cannot be read."""
    file = directory / hosts_file.NAME
    try:
        content = hosts_file.read(directory)
        is_collecting = platforms.HERE.is_lock_held(directory / LOCK)
    except OSError as error:
        raise ZeekAgentError(f"cannot read {error.filename or file}: {error.strerror}; {_ADVICE}") from None
    if not content.bytes:
        raise ZeekAgentError(f"no collector has recorded hosts in {directory}; {_ADVICE}")
    notices = []
    if not is_collecting:
        notices.append(f"no collector is writing to {directory}: these are the hosts that the last one knew")
    if content.damaged:
        notices.append(f"{file} has {content.damaged:,} lines that cannot be read")
    if content.evicted:
        notices.append(f"{content.evicted:,} hosts were removed because there were more than collector.hosts_max")
    return KnownHosts(list(content.hosts.values()), is_collecting, notices)


_ADVICE: Final = "give the collector's log directory with --logs"


def write(printer: Printer, known: KnownHosts, filters: Filters) -> None:
    """Print the hosts by name: all columns, or the main ones in a table."""
    rows = sorted(_rows(known, filters), key=lambda row: (row[0] or "", row[_ID]))
    shown = [index for index, (name, _) in enumerate(COLUMNS) if printer.mode is not Mode.TABLE or name in MAIN]
    printer.write([COLUMNS[index] for index in shown], [[row[index] for index in shown] for row in rows])


_ID: Final = [name for name, _ in COLUMNS].index("id")


def _rows(known: KnownHosts, filters: Filters) -> Iterator[Sequence[Any]]:
    for host in known.hosts:
        state = known.state(host)
        if filters.match(host, state):
            yield (
                host.hostname,
                state,
                host.since if state == host.state else None,
                host.last_seen,
                host.peer,
                _version(host.version),
                host.os_name or host.platform,
                host.rows,
                host.lost,
                host.gaps,
                host.last_gap,
                host.errors,
                host.last_error,
                host.conflicts,
                host.connects,
                host.first_seen,
                host.id,
                host.instance,
                host.addresses,
                host.certificate,
                host.gateway,
            )


def _version(number: int | None) -> str | None:
    """`3.0.0` for 300000000, the form in which agents send it."""
    if number is None:
        return None
    return f"{number // 10**8}.{number // 10**6 % 100}.{number // 10**4 % 100}"
