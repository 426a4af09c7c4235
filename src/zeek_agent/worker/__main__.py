"""The zygote: loads everything once, then forks a worker for each request of the agent.

It has one thread and no database, file or socket open except the agent's, so that a fork inherits nothing. It ends
when the agent closes its socket or dies.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from typing import NoReturn

import msgspec

from zeek_agent import heap
from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.containment import channel, messages
from zeek_agent.containment.lockdown import die_with
from zeek_agent.containment.messages import Exited, Setup, Spawn, Spawned
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.database.sql_connection import Catalog
from zeek_agent.errors import SqlError, ZeekAgentError
from zeek_agent.table import Table
from zeek_agent.tables import builtin_tables, plugin_tables
from zeek_agent.worker.agent_proxy import AgentProxy
from zeek_agent.worker.serve import Shared, Worker
from zeek_agent.worker.warm_up import warm_up

log = logging.getLogger("zeek_agent.worker")


def _ask_nobody(what: str, name: str) -> tuple[bytes, list[int]]:
    raise SqlError(f"no agent answers while the zygote starts ({what} {name})")


def _own_tables(declared: bytes) -> list[Table]:
    """The operator's tables; what they need is only imported if there are any."""
    if not declared:
        return []
    from zeek_agent.own_tables import declarations, snapshots

    return snapshots.tables(declarations.decode(declared))


class Zygote:
    """Forks workers. `control` is the socket to the agent."""

    def __init__(self, control: socket.socket, setup: Setup) -> None:
        self._control = control
        config = msgspec.msgpack.decode(setup.config, type=Config)
        access = AccessPolicy(config.access, setup.protected)
        own = _own_tables(setup.own_tables)
        self._shared = Shared(setup, config, access, Catalog.of(0, [*builtin_tables(), *plugin_tables(), *own]))
        try:
            warm_up(self._shared, AgentProxy(setup, _ask_nobody, self._shared.catalog.tables.values, None))
        except (ZeekAgentError, OSError):
            log.exception("cannot load what worker processes share in advance; each will start more slowly")
        heap.trim()
        self._workers: dict[int, int] = {}
        self._helpers: set[int] = set()
        """Pids of helpers, each of which leads a process group of its own."""
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Until the agent closes the socket. Helpers and their programs end first: nobody could end these later."""
        try:
            self._serve()
        finally:
            for helper in tuple(self._helpers):
                self._end_programs(helper)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._wakeup[0]], [], [])
            if self._wakeup[0] in ready:
                os.read(self._wakeup[0], 4096)
            self._reap()
            if self._control.fileno() in ready:
                received = channel.receive(self._control)
                if received is None:
                    return
                self._spawn(*received)

    def _spawn(self, body: bytes, descriptors: list[int]) -> None:
        spawn = messages.decode_to_zygote(body)
        assert isinstance(spawn, Spawn)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(spawn, socket.socket(fileno=descriptors[0]), parent)
        channel.close_all(descriptors)
        pidfd = os.pidfd_open(pid)
        self._workers[pid] = spawn.worker
        if spawn.kind is WorkerClass.HELPER:
            self._helpers.add(pid)
        channel.send(self._control, messages.encode(Spawned(spawn.worker, pid)), [pidfd])
        os.close(pidfd)

    def _become_worker(self, spawn: Spawn, connection: socket.socket, parent: int) -> NoReturn:
        """Never returns, whatever happens: a child must not go on as a zygote."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in self._wakeup:
                os.close(descriptor)
            self._control.close()
            if spawn.kind is WorkerClass.COLLECTOR:
                from zeek_agent.collector import process

                process.run(connection, parent)
                os._exit(0)
            worker = Worker(connection, self._shared, spawn)
            worker.start(parent)
            worker.serve()
            status = 0
        except BaseException:
            log.exception("a worker process failed")
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid in self._helpers:
                self._end_programs(ended.si_pid)
            pid, status, used = os.wait4(ended.si_pid, 0)
            cpu = used.ru_utime + used.ru_stime
            exited = Exited(self._workers.pop(pid, -1), status, cpu, used.ru_maxrss * 1024)
            channel.send(self._control, messages.encode(exited))

    def _end_programs(self, helper: int) -> None:
        """Kill a helper's process group, which has what its programs have started.

        The group cannot be another one's, since the helper has not been reaped yet.
        """
        self._helpers.remove(helper)
        try:
            os.killpg(helper, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError:
            log.exception("cannot kill the programs of helper %d: CAP_KILL is missing", helper)


def main() -> None:
    """The arguments are the descriptor of the socket to the agent, and the agent's pid.

    Signals that a terminal or a service manager sends to all processes of the agent are for the agent alone, which ends
    this one in its turn. The kernel ends it with the agent even if it has been stopped.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with(int(sys.argv[2]))
    heap.share()
    control = socket.socket(fileno=int(sys.argv[1]))
    received = channel.receive(control)
    if received is None:
        return
    setup = messages.decode_to_zygote(received[0])
    assert isinstance(setup, Setup)
    try:
        Zygote(control, setup).run()
    except (BrokenPipeError, ConnectionError):
        return  # the agent is gone


if __name__ == "__main__":
    main()
