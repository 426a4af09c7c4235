"""The first and only program of a virtual machine: loads every BPF object, sees one scenario each for exec, packet
sockets, TCP, UDP, a name lookup and, where its modules came along, SCTP through our sources, tells the results on the
console, and powers off. `run.py` starts it.

A result is a line `RESULT` with a JSON object: name, seconds, error (null when all is well); the last line is `END`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import asdict

from zeek_agent.bpf.iterators import Iterators, Task
from zeek_agent.bpf.libbpf import BpfObject
from zeek_agent.bpf.probe import cgroup2
from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess, socket_holders
from zeek_agent.recording.bpf_objects import RUN_ON_DEMAND
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.source import Source
from zeek_agent.schema import EventRow

WAIT = 60.0
MODULES = Path("/modules")
EXIT_CODE = 7
INIT_MODULE = 175  # of x86-64
TCP, UDP, SCTP = 6, 17, 132
CHANGING = {"name", "utime", "stime", "rsize", "vsize", "state", "threads"}
FILE_SYSTEMS = {"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs", "/sys/fs/cgroup": "cgroup2"}
CLIENT = """
import socket, sys
family, kind, protocol, address, port = (int(part) if part.isdecimal() else part for part in sys.argv[1:])
with socket.socket(family, kind, protocol) as client:
    if kind == socket.SOCK_STREAM:
        client.connect((address, port))
        client.send(b"?")
    else:
        client.sendto(b"?", (address, port))
    client.recv(1)
"""


class Events:
    """What the sources have recorded."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._found: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def append(self, table: str, rows: Sequence[EventRow]) -> None:
        with self._lock:
            self._found += [(table, asdict(cast("Struct", row))) for row in rows]

    def expect(self, table: str, **wanted: object) -> dict[str, Any]:
        """The event with these values, as soon as it is there."""
        deadline = time.monotonic() + WAIT
        while True:
            for source in self._sources:
                source.drain()
            with self._lock:
                rows = [row for name, row in self._found if name == table]
            for row in rows:
                if all(row[column] == value for column, value in wanted.items()):
                    return row
            if time.monotonic() > deadline:
                raise AssertionError(f"no event of {table} with {wanted} among {rows[-5:]}")
            time.sleep(0.1)


def sources() -> list[Source]:
    """The eBPF sources, as the agent makes them."""
    settings = SourceSettings(ignore_self=False, ignore_loopback=False, processes="ebpf", sockets="ebpf", dns="ebpf")
    by_kind = candidates(settings)
    return [*by_kind["processes"], *by_kind["dns"], *by_kind["sockets"]]


def objects() -> list[str]:
    """Names of the BPF objects in the package."""
    suffix = ".bpf.o"
    names = [entry.name for entry in resources.files("zeek_agent.bpf").iterdir()]
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def load(name: str) -> None:
    """Load one object and attach all its programs."""
    loaded = BpfObject(name)
    directory = os.open(str(cgroup2()), os.O_RDONLY)
    try:
        with suppress(KeyError):
            loaded.resize("records", 1 << 20)
        loaded.leave_out_missing()
        loaded.load()
        for program in loaded.programs:
            section = loaded.section_name(program)
            if section != RUN_ON_DEMAND:
                loaded.attach(program, directory if section.startswith("cgroup") else None)
    finally:
        os.close(directory)
        loaded.close()


def iterates() -> None:
    """The kernel's lists of processes and of sockets' holders say what /proc says."""
    iterators = Iterators()
    try:
        tasks, holders = {task.pid: task for task in iterators.tasks()}, iterators.socket_holders()
        with socket.socket() as held:
            inode = os.fstat(held.fileno()).st_ino
            assert iterators.socket_holders()[inode] == [(os.getpid(), held.fileno())]
    finally:
        iterators.close()
    assert holders == socket_holders("/proc", [os.getpid()])
    compared = [name for name in Task.__dataclass_fields__ if name not in CHANGING]
    for process in Procfs().processes():
        same(vars_of(tasks[process.pid], compared), **vars_of(process, compared))
    with ProcfsProcess(Procfs(), 2) as kernel_thread, ProcfsProcess(Procfs(), os.getpid()) as own:
        assert (tasks[2].rsize, kernel_thread.rsize) == (0, 0)
        assert abs(tasks[own.pid].rsize - own.rsize) < own.rsize / 10


def executes(recorded: Events) -> None:
    command = [sys.executable, "-S", "-c", f"raise SystemExit({EXIT_CODE})"]
    with subprocess.Popen(command) as process:
        process.wait()
    started = recorded.expect("processes_events", pid=process.pid, state="started", cmdline=" ".join(command))
    stopped = recorded.expect("processes_events", pid=process.pid, state="stopped")
    same(started, exe=os.path.realpath(sys.executable), uid=0, gid=0, ppid=os.getpid(), parent_entity_id=me())
    same(stopped, exit_code=EXIT_CODE, entity_id=started["entity_id"])


def sniffs(recorded: Events) -> None:
    opened = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
    with subprocess.Popen([sys.executable, "-S", "-c", opened]) as process:
        assert process.wait() == 0
    event = recorded.expect("sockets_events", pid=process.pid, family="packet")
    same(event, state="listen", exe=os.path.realpath(sys.executable), uid=0, parent_entity_id=me())
    same(event, netns=Path("/proc/self/ns/net").stat().st_ino, local_addr=None, remote_addr=None)


def connects(recorded: Events, family: socket.AddressFamily, address: str, protocol: int = TCP) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with client(family, socket.SOCK_STREAM, protocol, address, port) as pid:
            accepted, (_, peer, *_) = listener.accept()
            with accepted:
                accepted.sendall(accepted.recv(1))
    waiting = {"pid": os.getpid(), "protocol": protocol, "local_addr": address, "local_port": port, "direction": None}
    for state in ("listen", "closed"):
        same(recorded.expect("sockets_events", state=state, **waiting), entity_id=me(), remote_port=None)
    talked(recorded, pid, protocol, address, port, peer)
    ended = {"protocol": protocol, "state": "closed", "local_port": peer, "remote_port": port}
    carried(recorded.expect("sockets_events", pid=pid, **ended), 1 if protocol == TCP else None)


def sends(recorded: Events, family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        with client(family, socket.SOCK_DGRAM, UDP, address, port) as pid:
            datagram, (_, peer, *_) = server.recvfrom(1)
            server.sendto(datagram, (address, peer))
    talked(recorded, pid, UDP, address, port, peer)
    ended = {"protocol": UDP, "state": "closed", "local_port": peer, "remote_port": port}
    carried(recorded.expect("sockets_events", pid=pid, **ended), 1)


def carried(ended: dict[str, Any], size: int | None) -> None:
    """The client of a flow sent and received that many bytes."""
    same(ended, bytes_sent=size, bytes_received=size)


def looks_up(recorded: Events) -> None:
    """A question and its answer, as a stub resolver and a server exchange them."""
    header, asked = struct.Struct(">HHHHHH"), b"\4name\7example\0" + struct.pack(">HH", 1, 1)
    answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((192, 0, 2, 1))
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as asking:
        server.bind(("127.0.0.1", 53))
        asking.connect(("127.0.0.1", 53))
        asking.send(header.pack(7, 0x100, 1, 0, 0, 0) + asked)
        _, peer = server.recvfrom(512)
        server.sendto(header.pack(7, 0x8180, 1, 1, 0, 0) + asked + answer, peer)
        asking.recv(512)
    row = recorded.expect("dns_events", pid=os.getpid(), query="name.example")
    same(row, type="A", rcode="NOERROR", answers='["192.0.2.1"]', attempts=1, server_port=53)


def talked(recorded: Events, pid: int, protocol: int, address: str, port: int, peer: int) -> None:
    """Both ends of a flow that was opened by `pid` from the port `peer` are there, each with its process."""
    ends = {"protocol": protocol, "local_addr": address, "remote_addr": address, "state": "established"}
    opened = recorded.expect("sockets_events", pid=pid, local_port=peer, remote_port=port, **ends)
    taken = recorded.expect("sockets_events", pid=os.getpid(), local_port=port, remote_port=peer, **ends)
    same(opened, direction="outbound", exe=os.path.realpath(sys.executable), uid=0)
    same(taken, direction="inbound", entity_id=me(), community_id=opened["community_id"], listener_stands_in=False)
    assert opened["community_id"]


@contextmanager
def client(family: int, kind: int, protocol: int, address: str, port: int) -> Iterator[int]:
    """A process that talks to that server and waits for its answer."""
    arguments = map(str, (int(family), int(kind), protocol, address, port))
    with subprocess.Popen([sys.executable, "-S", "-c", CLIENT, *arguments]) as process:
        yield process.pid
        assert process.wait() == 0


def same(row: dict[str, Any], **wanted: object) -> None:
    different = {name: row[name] for name, value in wanted.items() if row[name] != value}
    assert not different, f"{different} instead of {[wanted[name] for name in different]} in {row}"


def vars_of(thing: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}


def me() -> str:
    with ProcfsProcess(Procfs(), os.getpid()) as process:
        return process.entity_id


def report(name: str, check: Callable[..., None], *arguments: object) -> bool:
    """Run a check and print its result; whether all is well."""
    begin, error = time.monotonic(), None
    try:
        check(*arguments)
    except Exception as reason:  # noqa: BLE001 - told to the host
        traceback.print_exc()
        error = f"{type(reason).__name__}: {reason}"
    result = {"name": name, "seconds": round(time.monotonic() - begin, 2), "error": error}
    print("RESULT", json.dumps(result), flush=True)
    return error is None


def load_modules() -> None:
    """Hand the modules that came along to the kernel, in the order of their names."""
    libc = ctypes.CDLL(None, use_errno=True)
    for module in sorted(MODULES.iterdir()):
        image = module.read_bytes()
        if libc.syscall(INIT_MODULE, image, ctypes.c_ulong(len(image)), b""):
            raise OSError(ctypes.get_errno(), f"{module.name}: {os.strerror(ctypes.get_errno())}")


def prepare() -> None:
    """What an init program has to do before others can run."""
    libc = ctypes.CDLL(None, use_errno=True)
    for place, kind in FILE_SYSTEMS.items():
        Path(place).mkdir(exist_ok=True)
        libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
    up = struct.pack("16sh22x", b"lo", 1)
    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS


def scenarios() -> None:
    if MODULES.exists():
        report("load modules", load_modules)
    for name in objects():
        report(f"load {name}", load, name)
    report("iterators", iterates)
    used = sources()
    recorded = Events(used)
    for source in used:
        if not report(f"start {source.kind}", source.start, recorded.append):
            return
    report("exec", executes, recorded)
    report("packet socket", sniffs, recorded)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        report(f"TCP {address}", connects, recorded, family, address)
        report(f"UDP {address}", sends, recorded, family, address)
        if any(MODULES.glob("*-sctp.ko")):
            report(f"SCTP {address}", connects, recorded, family, address, SCTP)
    report("name lookup", looks_up, recorded)
    for source in reversed(used):
        lost, error = dict(+source.counters.lost), source.counters.last_error
        report(f"stop {source.kind}", stop, source, lost, error)


def stop(source: Source, lost: dict[str, int], error: str | None) -> None:
    source.stop()
    assert not lost, f"events were lost: {lost}"
    assert error is None, error


def main() -> None:
    logging.basicConfig(level=logging.DEBUG)
    try:
        prepare()
        scenarios()
        print("END", flush=True)
    except Exception:  # noqa: BLE001 - nobody is left to tell but the console
        traceback.print_exc()
    finally:
        os.sync()
        ctypes.CDLL(None).reboot(0x1234567)  # RB_AUTOBOOT: with -no-reboot the machine ends


if __name__ == "__main__":
    main()
