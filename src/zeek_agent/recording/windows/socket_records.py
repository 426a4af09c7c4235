"""Maps Security 5156 and Sysmon 3 to rows of `sockets_events`.

Both report that a connection was permitted, begun or accepted. Neither reports its end, nor whether an attempt
succeeded.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from zeek_agent.community_id import PORT_PROTOCOLS, packed_community_id
from zeek_agent.host.windows import event_values
from zeek_agent.host.windows.event_fields import SECURITY, SYSMON
from zeek_agent.host.windows.event_xml import WindowsEvent
from zeek_agent.recording.sockets.socket_event import Direction, SocketEvent
from zeek_agent.recording.windows.event_mapping import MappingContext, acting_process, event_time, required
from zeek_agent.recording.windows.known_processes import Account, KnownProcess

_DIRECTIONS: Final[dict[str, Direction]] = {"%%14592": "inbound", "%%14593": "outbound"}
_INITIATED: Final[dict[str, Direction]] = {"true": "outbound", "false": "inbound"}
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}


class _End(NamedTuple):
    """One end of a connection."""

    address: str | None
    port: int | None


def socket_row(event: WindowsEvent, context: MappingContext) -> SocketEvent | None:
    """The row of an event; None if it is of another kind. Raises EventFieldError."""
    if (event.provider, event.event_id) == (SECURITY, 5156):
        return _permitted(event, context)
    if (event.provider, event.event_id) == (SYSMON, 3):
        return _connected(event, context)
    return None


def _permitted(event: WindowsEvent, context: MappingContext) -> SocketEvent:
    """In 5156, the source is the local end in both directions."""
    data = event.data
    pid = event_values.process_id(data.get("ProcessID"))
    exe = event_values.drive_path(data.get("Application"), context.drives)
    direction: Direction = required(_DIRECTIONS.get(data.get("Direction", "")), "Direction")
    protocol = required(event_values.number(data.get("Protocol"), 255), "Protocol")
    local = _End(event_values.address(data.get("SourceAddress")), event_values.port(data.get("SourcePort")))
    remote = _End(event_values.address(data.get("DestAddress")), event_values.port(data.get("DestPort")))
    process = acting_process(event, context, pid, exe)
    return _row(event, process, pid, exe, protocol=protocol, direction=direction, local=local, remote=remote)


def _connected(event: WindowsEvent, context: MappingContext) -> SocketEvent:
    """In Sysmon's event, the source is the end that began the connection."""
    data = event.data
    pid = event_values.process_id(data.get("ProcessId"))
    exe = event_values.drive_path(data.get("Image"), context.drives)
    direction: Direction = required(_INITIATED.get(data.get("Initiated", "").lower()), "Initiated")
    protocol = required(_PROTOCOLS.get(data.get("Protocol", "").lower()), "Protocol")
    source = _End(event_values.address(data.get("SourceIp")), event_values.port(data.get("SourcePort")))
    destination = _End(event_values.address(data.get("DestinationIp")), event_values.port(data.get("DestinationPort")))
    local, remote = (source, destination) if direction == "outbound" else (destination, source)
    process = acting_process(event, context, pid, exe)
    return _row(event, process, pid, exe, protocol=protocol, direction=direction, local=local, remote=remote)


def _row(
    event: WindowsEvent,
    process: KnownProcess | None,
    pid: int | None,
    exe: str | None,
    *,
    protocol: int,
    direction: Direction,
    local: _End,
    remote: _End,
) -> SocketEvent:
    exe = exe or (process.exe if process is not None else None)
    command_line = process.command_line if process is not None else None
    account = process.account if process is not None else Account()
    some = local.address or remote.address
    return SocketEvent(
        time=event_time(event),
        pid=pid,
        process=event_values.base_name(exe),
        uid=None,
        gid=None,
        family=None if some is None else "IPv6" if ":" in some else "IPv4",
        protocol=protocol,
        local_addr=local.address,
        local_port=local.port,
        remote_addr=remote.address,
        remote_port=remote.port,
        state="established",
        direction=direction,
        exe=exe,
        cmdline=command_line.cmdline if command_line is not None else None,
        loginuid=None,
        cookie=None,
        netns=None,
        container_id=None,
        entity_id=process.entity_id if process is not None else None,
        parent_entity_id=process.parent_entity_id if process is not None else None,
        community_id=_community_id(protocol, local, remote),
        listener_stands_in=False,
        argv=command_line.stored_argv if command_line is not None else None,
        user=event_values.text(event.data.get("User")) or account.user,
        sid=account.sid,
    )


def _community_id(protocol: int, local: _End, remote: _End) -> str | None:
    if protocol not in PORT_PROTOCOLS or None in {*local, *remote}:
        return None
    packed = [_packed(end.address or "") for end in (local, remote)]
    if len(packed[0]) != len(packed[1]):
        return None
    return packed_community_id(protocol, packed[0], local.port or 0, packed[1], remote.port or 0)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
