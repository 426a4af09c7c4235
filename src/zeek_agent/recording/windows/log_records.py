"""Maps any event of a log to a row of `system_logs_events`."""

from __future__ import annotations

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
_COMMAND_LINES: Final = frozenset({"CommandLine", "ParentCommandLine", "ProcessCommandLine"})


def log_row(event: WindowsEvent, message: str | None, masker: Masker) -> SystemLogEntry:
    """The row of an event with the message that Windows makes of it; without one, its values."""
    if message is None or any(event.data.get(name) for name in _COMMAND_LINES):
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
    named = [
        f"{name}={masker.line(value) if name in _COMMAND_LINES else value}"
        for name, value in event.data.items()
        if value
    ]
    return "; ".join([*named, *(value for value in event.unnamed if value)])
