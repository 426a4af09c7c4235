"""Rows of name lookups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from zeek_agent.host.internet_sockets import address_text
from zeek_agent.recording.dns.dns_message import Message, code_name, type_name
from zeek_agent.recording.sockets.socket_event import Flow, flow_id

if TYPE_CHECKING:
    from zeek_agent.recording.processes.process import Process

DNS_EVENTS: Final = "dns_events"
RESOLVERS: Final = frozenset(
    {
        *("systemd-resolve", "dnsmasq", "unbound", "named", "nscd", "nsncd", "kresd", "pdns_recursor", "coredns"),
        *("avahi-daemon", "stubby", "dnscrypt-proxy"),
    }
)
"""Names of services that ask on behalf of other processes."""


class DnsEvent(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row of `dns_events`, which describes the columns. None means unknown or not applicable."""

    time: float
    pid: int | None
    process: str | None
    uid: int | None
    query: str | None
    type: str | None
    rcode: str | None
    answers: str | None
    """As the event store holds it: JSON."""
    latency: float | None
    attempts: int | None
    truncated: bool
    protocol: int | None
    local_addr: str | None
    local_port: int | None
    server_addr: str | None
    server_port: int | None
    via: str | None
    exe: str | None
    cmdline: str | None
    loginuid: int | None
    netns: int | None
    container_id: str | None
    entity_id: str | None
    parent_entity_id: str | None
    community_id: str | None
    cookie: int | None
    argv: str | None = None
    """As the event store holds it (`CommandLine.stored_argv`)."""
    exe_device: int | None = None
    exe_inode: int | None = None
    exe_mntns: int | None = None


class Lookup(NamedTuple):
    """A question that a process asked a server at `time` (seconds since the epoch), `attempts` times."""

    time: float
    flow: Flow
    process: Process | None
    name: str | None
    type: int | None
    attempts: int | None = 1


def dns_event(lookup: Lookup, answer: Message | None, latency: float | None) -> DnsEvent:
    """The row of a lookup, with its answer if there was one."""
    flow, process = lookup.flow, lookup.process
    command_line = process.command_line if process else None
    name = process.name or None if process else None
    return DnsEvent(
        lookup.time,
        process.pid if process else None,
        name,
        process.uid if process else None,
        lookup.name,
        None if lookup.type is None else type_name(lookup.type),
        None if answer is None else code_name(answer.code),
        None if answer is None else msgspec.json.encode([each.text for each in answer.answers]).decode(),
        latency,
        lookup.attempts,
        answer is not None and answer.truncated,
        flow.protocol,
        None if flow.local is None else address_text(flow.local),
        flow.local_port,
        None if flow.remote is None else address_text(flow.remote),
        flow.remote_port,
        name if name in RESOLVERS else None,
        process.exe if process else None,
        command_line.cmdline if command_line else None,
        process.loginuid if process else None,
        flow.netns,
        process.container_id if process else None,
        process.entity_id or None if process else None,
        process.parent_entity_id or None if process else None,
        flow_id(flow),
        flow.cookie,
        command_line.stored_argv if command_line else None,
        process.exe_device if process else None,
        process.exe_inode if process else None,
        process.exe_mntns if process else None,
    )
