"""`zeek-agent doctor`: checks of the agent's requirements and abilities on this host, with remedies.

Each check is a function that yields verdicts: `fail` if `run` would not work, `warn` if it would work worse, otherwise
`ok`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw
import msgspec

from zeek_agent import destination, paths, platforms
from zeek_agent.control.messages import NoAgentError
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.events.store import NewerStoreError
from zeek_agent.file_lock import EXPOSURE_ADVICE, LockHeldError
from zeek_agent.host.linux import capabilities
from zeek_agent.host.linux.capabilities import Capability
from zeek_agent.platforms import PROGRAM
from zeek_agent.terminal import config_check, console, responders, worker_checks
from zeek_agent.terminal.check import Check, kernel_setting
from zeek_agent.text import clipped, visible

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config
    from zeek_agent.config.sections import OsquerySettings, SourceSettings, ZeekSettings
    from zeek_agent.destination import Destination
    from zeek_agent.zeek.protocol import Ack, Error, Message

KERNEL_MIN: Final = (5, 15)
WITHOUT_CAPABILITY: Final = {
    Capability.DAC_READ_SEARCH: "other users' private files cannot be read",
    Capability.NET_ADMIN: (
        "eBPF does not record UDP and ICMP; address translation is not tracked; no process connector before Linux 6.6"
    ),
    Capability.SYS_PTRACE: "executables and open sockets of other users' processes are unknown",
    Capability.AUDIT_READ: "the audit backend is not available",
    Capability.PERFMON: "eBPF cannot trace processes and sockets",
    Capability.BPF: "eBPF cannot be loaded",
    Capability.SETUID: "worker processes, which run SQL, have no user of their own",
    Capability.SETGID: "worker processes have no group of their own",
    Capability.SETPCAP: "the bounding set of worker processes is not restricted",
    Capability.KILL: "worker processes of another user cannot be killed when they hang",
}
"""The consequence of each missing capability."""
NETLINK_AUDIT: Final = 9


def run_checks(config: Config, origins: Mapping[str, str]) -> list[Check]:
    """All checks, in the order in which problems should be fixed."""
    places = paths.locate(config)
    checks = [*_python(), *_configuration(config), *_state(places.state, config.events.retention_bytes)]
    checks += _files(config)
    if config.tables.files:
        from zeek_agent.terminal import own_table_checks

        checks += own_table_checks.checks(config)
    checks += _store(places.store)
    checks += _agent(config)
    if platforms.HERE.key == "linux":
        checks += [*_privileges(), *_kernel(), *_bpf(), *_cgroup(), *_audit()]
        checks += [*worker_checks.protections(config), *worker_checks.fuse_timeout()]
    elif platforms.HERE.key == "darwin":
        from zeek_agent.terminal import macos_checks

        checks += macos_checks.checks()
    elif platforms.HERE.key == "win32":
        from zeek_agent.terminal import windows_checks

        checks += windows_checks.checks()
    checks += _osquery(config.osquery)
    for target in destination.parse_all(config.zeek.destinations):
        if target.is_bus:
            from zeek_agent.terminal import bus_checks

            checks += bus_checks.checks(config, places, target)
        else:
            checks += _zeek(str(target), config.zeek)
    return checks


def as_text(checks: list[Check], color: bool) -> str:
    """One line per check, with advice below it."""
    width = max(len(check.name) for check in checks)
    colors = {"ok": console.GREEN, "warn": console.YELLOW, "fail": console.RED}
    lines = []
    for check in checks:
        verdict = f"{check.verdict:4}"
        verdict = f"{colors[check.verdict]}{verdict}{console.PLAIN}" if color else verdict
        lines.append(f"{verdict}  {check.name:{width}}  {visible(check.found)}")
        if check.advice:
            lines.append(f"      {'':{width}}  → {visible(check.advice)}")
    return "\n".join(lines) + "\n"


def as_json(checks: list[Check]) -> str:
    """A list of objects."""
    return msgspec.json.format(msgspec.json.encode(checks)).decode() + "\n"


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()}, SQLite {apsw.sqlite_lib_version()}")


def _configuration(config: Config) -> Iterator[Check]:
    try:
        config_check.check_files_and_groups(config)
    except UsageError as error:
        yield Check("configuration", "fail", str(error), "fix that setting; `zeek-agent config check` shows all")
    else:
        yield Check("configuration", "ok", "all settings are valid")


def _state(state: Path, wanted: int) -> Iterator[Check]:
    """Whether the state directory, existing or to be created, is writable and has space for the event store."""
    place = next(path for path in (state, *state.parents) if os.access(path, os.F_OK))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        advice = "the agent's id and events will not outlive it; run as root or choose another --state-dir"
        yield Check("state directory", "warn", f"{state} is not writable", advice)
        return
    if place == state:
        if reason := platforms.HERE.directory_exposure(state):
            yield Check("state directory", "fail", reason, f"{EXPOSURE_ADVICE} or choose another --state-dir")
            return
        if reason := platforms.HERE.group_exposure(state):
            yield Check("state directory", "warn", reason, "its members can replace the agent's files: chmod g-w it")
    free = shutil.disk_usage(place).free
    room = f"{state}, {free // 2**20} MiB free"
    if free < wanted:
        advice = f"events may take {wanted // 2**20} MiB: free some space, or lower events.retention_bytes"
        yield Check("state directory", "warn", room, advice)
    else:
        yield Check("state directory", "ok", room)


def _files(config: Config, proc: Path = Path("/proc")) -> Iterator[Check]:
    """The preconditions of the path gate, and the protections disabled by the configuration."""
    protected = kernel_setting(proc / "sys/fs/protected_hardlinks")
    if protected == "0":
        advice = "any user can create hard links to files in access.paths_deny: sysctl fs.protected_hardlinks=1"
        yield Check("hard links", "warn", "fs.protected_hardlinks is 0", advice)
    elif protected is not None:
        yield Check("hard links", "ok", f"fs.protected_hardlinks is {protected}")
    if config.access.mode == "report":
        advice = "set access.mode to enforce, and add files that the log names to access.files_allow"
        yield Check("file contents", "warn", 'access.mode is "report": contents that are on no list are read', advice)
    if config.access.filesystems_allow:
        admitted = ", ".join(config.access.filesystems_allow)
        timeout = kernel_setting(proc / "sys/fs/fuse/max_request_timeout")
        bounded = "" if timeout in (None, "0") else f"; fs.fuse.max_request_timeout is {timeout} s"
        advice = "a statement that accesses a hung one never ends, and cannot be killed"
        yield Check("file systems", "warn", f"access.filesystems_allow permits {admitted}{bounded}", advice)


def _store(path: Path) -> Iterator[Check]:
    """Whether this version can use the event store of earlier runs, if any."""
    from zeek_agent.terminal.local_responder import StoredEvents

    if not os.access(path, os.R_OK):
        return
    try:
        StoredEvents(path).close()
    except NewerStoreError as error:
        yield Check("event store", "fail", str(error))
    except (apsw.Error, OSError) as error:
        advice = "when the agent starts, it moves a damaged file aside and creates a new one"
        yield Check("event store", "warn", f"{path} cannot be read ({error})", advice)
    else:
        yield Check("event store", "ok", str(path))


def _agent(config: Config) -> Iterator[Check]:
    """Whether an agent is running, and its event sources; without one, the sources available here."""
    try:
        running = responders.connect(config)
    except NoAgentError as error:
        yield Check("agent", "ok", str(error))
        if not config.zeek.destinations:
            yield from _collector(Path(config.collector.logs).absolute())
        yield from _sources(config.sources)
        return
    except ZeekAgentError as error:
        yield Check("agent", "warn", str(error), "`query` and `shell` use this process instead")
        return
    try:
        facts = responders.status(running)
        yield Check("agent", "ok", f"running, pid {facts.get('pid')}, version {facts.get('version')}")
        if facts.get("collector") is not None:
            problem = facts.get("collector_error")
            yield _collector_check(problem) if problem else Check("collector", "ok", f"logs in {facts['collector']}")
        sql = "SELECT source, backend, active, reason, last_error FROM zeek_agent_sources WHERE source <> 'osquery'"
        _, rows, _ = responders.query(running, sql)
        yield from _active_sources(rows)
        if platforms.HERE.confines_workers:
            yield from worker_checks.lacking(responders.query(running, worker_checks.LACKING)[1])
            yield from worker_checks.service(int(facts["pid"]))
    finally:
        running.close()


def _collector(logs: Path) -> Iterator[Check]:
    """Whether the embedded collector could lock and write its logs."""
    from zeek_agent.collector import log_files

    place = next(path for path in (logs, *logs.parents) if os.access(path, os.F_OK))
    lock = logs / log_files.LOCK
    try:
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            yield _collector_check(f"cannot write {logs}")
            return
        if lock.exists():
            platforms.HERE.acquire_lock(lock, legacy_directory=logs).close()
    except LockHeldError as error:
        yield _collector_check(f"another collector{error.holder} writes its logs to {logs}")
    except OSError as error:
        yield _collector_check(f"cannot write {error.filename or logs}: {error.strerror}")
    else:
        yield Check("collector", "ok", f"logs in {logs}")


def _collector_check(found: str) -> Check:
    return Check(
        "collector", "warn", found, "events are still recorded; fix this, or choose another directory with --logs"
    )


def _active_sources(rows: Sequence[Sequence[Any]]) -> Iterator[Check]:
    """The active source of each kind of event, and why better ones are inactive; if none is active, why not."""
    shortcomings = _shortcomings()
    for kind in dict.fromkeys(source for source, *_ in rows):
        better: list[str] = []
        for backend, active, reason, error in (rest for source, *rest in rows if source == kind):
            if active:
                lacking = [str(each) for each in (reason, error) if each]
                if better and (kind, backend) in shortcomings:
                    lacking.append(shortcomings[kind, backend])
                found = "; ".join([f"{kind} by {backend}, active", *lacking])
                advice = f"not by {'; '.join(better)}" if better else None
                yield Check("events", "warn" if better or error else "ok", found, advice)
                break
            better.append(f"{backend}: {reason}")
        else:
            yield Check("events", "warn", f"no source of {kind} is active ({'; '.join(better)})")


def _shortcomings() -> dict[tuple[str, str], str]:
    """The shortcomings of each source, by kind and backend."""
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.registry import candidates

    sources = [source for of_kind in candidates(SourceSettings()).values() for source in of_kind]
    return {(source.kind, source.backend): source.shortcoming for source in sources if source.shortcoming}


def _sources(settings: SourceSettings) -> Iterator[Check]:
    """The source of each kind of event that will be used, why better ones cannot, and the fallbacks."""
    from zeek_agent.recording.files.file_watcher_link import Startable
    from zeek_agent.recording.registry import candidates

    is_linux = platforms.HERE.key == "linux"
    watchers = Startable() if is_linux and Capability.SYS_ADMIN in capabilities.effective() else None
    for kind, sources in candidates(settings, watchers=watchers).items():
        essential = any(source.essential for source in sources)
        best: str | None = None
        for number, source in enumerate(sources):
            name, reason = f"{kind} by {source.backend}", source.probe()
            if reason is None and best is None:
                best = source.backend
                lacking = [source.note, source.shortcoming if number else None]
                yield Check("events", "ok", "; ".join([f"{name}: will be used", *filter(None, lacking)]))
            elif reason is None:
                yield Check("events", "ok", f"{name}: available as a fallback")
            elif best is None:
                yield Check("events", "warn" if essential else "ok", f"{name}: {reason}")
            else:
                yield Check("events", "ok", f"{name}: not available as a fallback: {reason}")
        if essential and best is None:
            yield Check("events", "warn", f"no source of {kind} works here", f"the table {kind}_events will be empty")


def _privileges() -> Iterator[Check]:
    held = capabilities.effective()
    missing = {capability.name: lost for capability, lost in WITHOUT_CAPABILITY.items() if capability not in held}
    who = platforms.HERE.user()
    if not missing:
        yield Check("privileges", "ok", f"{who}, all capabilities that the agent uses")
        return
    allow = "allow them in its unit (CapabilityBoundingSet) or container"
    remedy = "run as root, or grant them" if not platforms.HERE.is_privileged() else allow
    found = f"{who}, without CAP_{', CAP_'.join(missing)}"
    yield Check("privileges", "warn", found, f"{remedy}; without them, {'; '.join(missing.values())}")


def _kernel() -> Iterator[Check]:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version >= KERNEL_MIN:
        yield Check("kernel", "ok", release)
    else:
        yield Check("kernel", "warn", release, f"eBPF sources need {'.'.join(map(str, KERNEL_MIN))} or later")


def _bpf() -> Iterator[Check]:
    from zeek_agent import bpf

    btf = Path("/sys/kernel/btf/vmlinux")
    if os.access(btf, os.R_OK):
        yield Check("kernel types", "ok", f"{btf}, {btf.stat().st_size // 1024} KiB")
    else:
        advice = "eBPF sources need a kernel with CONFIG_DEBUG_INFO_BTF"
        yield Check("kernel types", "warn", f"{btf} cannot be read", advice)
    try:
        ctypes.CDLL("libbpf.so.1")
        yield Check("libbpf", "ok", "libbpf.so.1")
    except OSError:
        yield Check("libbpf", "warn", "libbpf.so.1 was not found", "install libbpf1 (Debian) or libbpf (Fedora)")
    objects = sorted(file.name for file in resources.files(bpf).iterdir() if file.name.endswith(".bpf.o"))
    if objects:
        yield Check("BPF objects", "ok", ", ".join(objects))
    else:
        yield Check("BPF objects", "warn", "none are built", "`make setup` builds them; it needs clang and libbpf-dev")


def _cgroup() -> Iterator[Check]:
    from zeek_agent.bpf.probe import cgroup2

    place = cgroup2()
    if place is not None:
        yield Check("cgroup v2", "ok", place)
    else:
        advice = "without it, UDP sockets are recorded less accurately: mount -t cgroup2 none /sys/fs/cgroup/unified"
        yield Check("cgroup v2", "warn", "not mounted", advice)


def _audit() -> Iterator[Check]:
    from zeek_agent.host.linux import netlink

    try:
        netlink.channel(NETLINK_AUDIT).close()
        yield Check("audit", "ok", "available in the kernel")
    except OSError as error:
        yield Check("audit", "warn", f"not available: {error.strerror}", "only matters if eBPF does not work")


def _osquery(settings: OsquerySettings) -> Iterator[Check]:
    """Query osquery for its version, as the agent would."""
    from zeek_agent.osquery import bridge
    from zeek_agent.osquery.wire import ImpostorError, ThriftConnection

    if settings.socket == bridge.OFF:
        return
    try:
        path = bridge.find_socket(settings.socket)
        connection = ThriftConnection(path, settings.time)
        try:
            ((version, tables),) = [
                (str(row["version"]), str(row["tables"]))
                for row in connection.query(
                    "SELECT version, (SELECT count(*) FROM osquery_registry WHERE registry = 'table' AND active = 1) "
                    "AS tables FROM osquery_info"
                )
            ]
        finally:
            connection.close()
    except (ZeekAgentError, ValueError, KeyError) as error:
        if isinstance(error, ImpostorError):
            yield Check("osquery", "warn", str(error), "its tables are not in the database")
        elif settings.socket == bridge.AUTO:
            yield Check("osquery", "ok", f"{error}; its tables are not in the database")
        else:
            yield Check("osquery", "warn", str(error), "start osqueryd with --extensions_socket, or fix osquery.socket")
    else:
        yield Check("osquery", "ok", f"{path}, version {version}, {tables} tables")


def _zeek(url: str, settings: ZeekSettings) -> Iterator[Check]:
    """Connect as the agent would, subscribe to nothing, and wait for the acknowledgement."""
    from websockets.exceptions import WebSocketException

    from zeek_agent.zeek import connection_errors

    target = destination.parse(url)
    try:
        answer = platforms.HERE.run(_first_answer(target, settings))
    except (OSError, WebSocketException, ZeekAgentError) as error:
        yield Check("zeek", "fail", connection_errors.explain(error, target), "`zeek-agent run` keeps retrying")
    else:
        yield _acknowledged(url, answer)


async def _first_answer(target: Destination, settings: ZeekSettings) -> Ack | Error | Message:
    from zeek_agent.zeek import connection_errors, protocol
    from zeek_agent.zeek.connection import open_websocket

    async with await open_websocket(target, settings, f"{PROGRAM}-doctor") as websocket:
        await websocket.send(protocol.subscription_message([]))
        try:
            async with asyncio.timeout(settings.ack_timeout):
                return protocol.read_message(await websocket.recv(decode=False))
        except TimeoutError:
            raise connection_errors.UnusableError(
                connection_errors.NO_ACK.format(seconds=settings.ack_timeout)
            ) from None


def _acknowledged(url: str, answer: object) -> Check:
    from zeek_agent.zeek import connection_errors, protocol

    if not isinstance(answer, protocol.Ack):
        return Check("zeek", "fail", f"Zeek at {url} answered {clipped(repr(answer))} instead of an acknowledgement")
    if answer.lacks_backend:
        return Check("zeek", "fail", f"Zeek at {url} {connection_errors.NO_BACKEND}")
    return Check("zeek", "ok", f"Zeek at {url} answers, version {clipped(answer.version)}")
