"""Checks of `zeek-agent doctor` on macOS: its version, the permissions that recording needs, and ids."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeek_agent import platforms
from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.macos.boot_session import boot_session
from zeek_agent.host.macos.eslogger_errors import FULL_DISK_ACCESS
from zeek_agent.recording.processes.eslogger import COMMAND as ESLOGGER
from zeek_agent.recording.processes.eslogger import missing_events
from zeek_agent.recording.system_log.unified_log import UnifiedLog
from zeek_agent.terminal.check import Check

VERSION_MIN: Final = 13
PROTECTED: Final = Path("/Library/Application Support/com.apple.TCC/TCC.db")
"""Readable only with Full Disk Access, even by root."""


@dataclass(frozen=True, slots=True)
class Mac:
    """The host, as the checks see it."""

    version: Callable[[], str] = lambda: platform.mac_ver()[0]
    is_root: Callable[[], bool] = platforms.HERE.is_privileged
    user: Callable[[], str] = platforms.HERE.user
    machine_id: Callable[[], str | None] = platforms.HERE.machine_id
    boot: Callable[[], str] = boot_session
    eslogger: Sequence[str] = ESLOGGER
    protected: Path = PROTECTED
    program: str = os.path.realpath(sys.executable)
    log: UnifiedLog | None = None


def checks(mac: Mac | None = None) -> Iterator[Check]:
    """All checks, in the order in which problems should be fixed."""
    mac = mac or Mac()
    yield _system(mac.version())
    yield _privileges(mac)
    yield _eslogger(mac)
    if mac.is_root():
        yield _full_disk_access(mac)
    yield _unified_log(mac.log or UnifiedLog(SourceSettings()))
    yield from _ids(mac)


def _system(version: str) -> Check:
    major = version.partition(".")[0]
    if major.isdigit() and int(major) >= VERSION_MIN:
        return Check("macOS", "ok", version)
    advice = f"process events need eslogger, which is part of macOS {VERSION_MIN} and later"
    return Check("macOS", "warn", version or "of an unknown version", advice)


def _privileges(mac: Mac) -> Check:
    if mac.is_root():
        return Check("privileges", "ok", mac.user())
    advice = (
        "run as root (`sudo zeek-agent service install`); without it, there are no process events, and other users' "
        "command lines and sockets are unknown"
    )
    return Check("privileges", "warn", mac.user(), advice)


def _eslogger(mac: Mac) -> Check:
    program = mac.eslogger[0]
    if not os.access(program, os.X_OK):
        return Check("eslogger", "warn", f"{program} does not exist", "processes are then found by polling")
    try:
        reason = missing_events(mac.eslogger)
    except OSError as error:
        reason = str(error)
    if reason is not None:
        return Check("eslogger", "warn", reason, "processes are then found by polling")
    return Check("eslogger", "ok", f"{program} reports the events that the agent uses")


def _full_disk_access(mac: Mac) -> Check:
    """By a file that nothing else opens. launchd's daemon has permissions of its own."""
    name = "full disk access"
    try:
        with mac.protected.open("rb") as file:
            file.read(1)
    except PermissionError:
        advice = (
            f"grant it in {FULL_DISK_ACCESS}: to {mac.program} for the agent as a service, to the terminal or SSH "
            "server for one that is started there"
        )
        return Check(name, "warn", "this program, as it was started now, does not have it", advice)
    except OSError as error:
        return Check(name, "ok", f"cannot be determined: {error}")
    return Check(name, "ok", "this program, as it was started now, has it")


def _unified_log(log: UnifiedLog) -> Check:
    reason = log.probe()
    if reason is None:
        return Check("unified log", "ok", "can be followed")
    return Check("unified log", "warn", reason, "the table system_logs_events will be empty")


def _ids(mac: Mac) -> Iterator[Check]:
    if mac.machine_id() is None:
        advice = "the agent's id is then bound to its state directory only"
        yield Check("machine id", "warn", "ioreg shows no IOPlatformUUID", advice)
    else:
        yield Check("machine id", "ok", "IOPlatformUUID")
    try:
        yield Check("boot id", "ok", mac.boot())
    except OSError as error:
        yield Check("boot id", "warn", str(error), "without it, process events cannot be recorded by eslogger")
