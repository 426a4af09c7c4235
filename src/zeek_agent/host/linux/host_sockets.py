"""The internet sockets of all network namespaces that the agent can access."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from zeek_agent.host.internet_sockets import ALL_STATES, InternetSocket
from zeek_agent.host.linux import inet_diag, proc_net, unix_sockets
from zeek_agent.host.linux.namespaces import in_network_namespace
from zeek_agent.host.linux.proc_net import PacketSocket
from zeek_agent.host.linux.procfs import living_directory, network_namespace
from zeek_agent.host.linux.unix_sockets import UnixSocket

log = logging.getLogger(__name__)

_open_channel: Callable[[int], socket.socket] | None = None


def use(open_channel: Callable[[int], socket.socket]) -> None:
    """Enter no other network namespace: this function opens a sock_diag(7) socket in that of a process.

    For a process that may not enter namespaces itself. It raises OSError.
    """
    global _open_channel  # noqa: PLW0603
    _open_channel = open_channel


def sockets_by_namespace(
    root: str,
    pids: Iterable[int],
    protocols: Collection[int],
    states: int = ALL_STATES,
    check: Callable[[], None] = lambda: None,
    *,
    with_traffic: bool = False,
) -> Iterator[tuple[int | None, list[InternetSocket]]]:
    """Sockets of the agent's own namespace and of those of these processes, each with the namespace's inode number.

    Only the given protocols and states (a mask by number). Reading another namespace requires CAP_SYS_ADMIN, or a
    process there that the agent may inspect; otherwise its sockets are omitted. `with_traffic` as for `list_sockets`.
    """
    own = network_namespace(root, "self")
    yield own, list(inet_diag.list_sockets(protocols, states, check, with_traffic=with_traffic))
    for namespace, inside in _others(root, pids, own).items():
        yield namespace, _foreign(root, inside, protocols, states, check, with_traffic=with_traffic)


def packet_sockets_by_namespace(root: str, pids: Iterable[int]) -> Iterator[tuple[int | None, list[PacketSocket]]]:
    """The same for packet sockets."""
    own = network_namespace(root, "self")
    yield own, list(proc_net.packet_sockets())
    for namespace, inside in _others(root, pids, own).items():
        for pid in inside:
            try:
                found = list(proc_net.packet_sockets(f"{living_directory(root, pid)}/net"))
            except OSError:  # gone, or not accessible
                continue
            yield namespace, found
            break


def unix_sockets_by_namespace(root: str, pids: Iterable[int]) -> Iterator[tuple[int | None, list[UnixSocket]]]:
    """The same for Unix sockets, whose names and inode numbers the kernel keeps by network namespace, too."""
    own = network_namespace(root, "self")
    yield own, unix_sockets.list_unix_sockets()
    for namespace, inside in _others(root, pids, own).items():
        yield namespace, _foreign_unix_sockets(root, inside)


def _foreign_unix_sockets(root: str, inside: Sequence[int]) -> list[UnixSocket]:
    """The Unix sockets of the namespace of these processes, through the first one that still exists."""
    for pid in inside:
        directory = f"{living_directory(root, pid)}/net"
        try:
            if _open_channel is not None:
                with _open_channel(pid) as channel:
                    return unix_sockets.unix_sockets_on(channel, directory)
            return in_network_namespace(f"{living_directory(root, pid)}/ns/net", unix_sockets.list_unix_sockets)
        except OSError as error:
            log.debug("cannot list the Unix sockets of another network namespace: %s", error)
        with suppress(OSError):  # gone, or not accessible
            return list(unix_sockets.unix_sockets_from_proc(directory))
    return []


def _others(root: str, pids: Iterable[int], own: int | None) -> dict[int, list[int]]:
    """The network namespaces of these processes except the agent's own, with their members."""
    members: dict[int, list[int]] = {}
    for pid in pids:
        namespace = network_namespace(root, pid)
        if namespace is not None and namespace != own:
            members.setdefault(namespace, []).append(pid)
    return members


def _foreign(
    root: str,
    inside: Sequence[int],
    protocols: Collection[int],
    states: int,
    check: Callable[[], None],
    *,
    with_traffic: bool,
) -> list[InternetSocket]:
    """The sockets of the namespace of these processes, through the first one that still exists."""
    failure: OSError | None = None
    for pid in inside:
        directory = living_directory(root, pid)
        try:
            if _open_channel is not None:
                with _open_channel(pid) as channel:
                    return inet_diag.sockets_on(
                        channel, protocols, states, f"{directory}/net", check, with_traffic=with_traffic
                    )
            return in_network_namespace(
                f"{directory}/ns/net",
                lambda: list(inet_diag.list_sockets(protocols, states, check, with_traffic=with_traffic)),
            )
        except FileNotFoundError:
            continue
        except OSError as error:
            failure = error
        try:
            return [
                found
                for protocol in protocols
                for found in proc_net.list_sockets(protocol, f"{directory}/net", check)
                if states >> found.state & 1
            ]
        except OSError as error:
            failure = error
    if failure is not None:
        log.debug("cannot list the sockets of another network namespace: %s", failure)
    return []
