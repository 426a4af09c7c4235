"""Maps any event of a log to a row of `system_logs_events`."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.host.windows.event_xml import WindowsEvent
from zeek_agent.masking.log_messages import masked_message
from zeek_agent.recording.system_log.log_entry import SystemLogEntry, bounded
from zeek_agent.text import from_bytes, to_bytes

if TYPE_CHECKING:
    from zeek_agent.masking.masker import Masker

_LEVELS: Final = {1: 2, 2: 3, 3: 4, 4: 6, 5: 7}
"""Severities of syslog by the levels of Windows, from critical to verbose."""
_AUDIT_FAILURE: Final = 0x10_0000_0000_0000
_AUDIT_SUCCESS: Final = 0x20_0000_0000_0000
_COMMAND_LINES: Final = frozenset(
    {"CommandLine", "ParentCommandLine", "ProcessCommandLine", "ImagePath", "ServiceFileName", "HostApplication"}
)
"""Values with command lines: also of services that were installed (7045, 4697), and of PowerShell."""
_TASKS: Final = frozenset({"TaskContent", "TaskContentNew"})
"""XML of scheduled tasks that were created or changed (4698, 4702)."""


def log_row(event: WindowsEvent, message: str | None, masker: Masker) -> SystemLogEntry:
    """The row of an event with the message that Windows makes of it; without one, its values."""
    if message is None or any(event.data.get(name) for name in _COMMAND_LINES | _TASKS):
        message = _values(event, masker)
    return SystemLogEntry(
        time=event.time,
        process=event.provider,
        level=str(_level(event)),
        message=from_bytes(bounded(to_bytes(masked_message(message, masker)))),
        eventid=str(event.event_id),
        pid=event.process_id or None,
        identifier=event.channel,
        cursor=f"{event.channel}:{event.record_id}",
    )


def _level(event: WindowsEvent) -> int:
    if event.keywords & _AUDIT_FAILURE:
        return 4
    if event.keywords & _AUDIT_SUCCESS:
        return 5
    return _LEVELS.get(event.level, 6)


def _values(event: WindowsEvent, masker: Masker) -> str:
    """The values with their names, secrets in command lines masked: a message would quote these unmasked."""
    named = [f"{name}={_shown(name, value, masker)}" for name, value in event.data.items() if value]
    return "; ".join([*named, *(value for value in event.unnamed if value)])


def _shown(name: str, value: str, masker: Masker) -> str:
    if name in _TASKS:
        return ", ".join(masker.line(command) for command in _commands(value))
    return masker.line(value) if name in _COMMAND_LINES else value


def _commands(task: str) -> Iterator[str]:
    """What a scheduled task executes, each with its arguments."""
    for action in task.split("<Exec>")[1:]:
        parts = (_element(action, "Command"), _element(action, "Arguments"))
        yield html.unescape(" ".join(filter(None, parts)))


def _element(xml: str, name: str) -> str:
    _, _, rest = xml.partition(f"<{name}>")
    return rest.partition(f"</{name}>")[0].strip()
