"""What the mappings of Windows' events to rows share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from zeek_agent.host.windows import event_values
from zeek_agent.host.windows.command_line import split_command_line
from zeek_agent.host.windows.event_xml import WindowsEvent, epoch_seconds
from zeek_agent.text import to_bytes

if TYPE_CHECKING:
    from zeek_agent.masking.command_line import CommandLine
    from zeek_agent.masking.masker import Masker
    from zeek_agent.recording.windows.known_processes import KnownProcess, KnownProcesses

_Value = TypeVar("_Value")


class EventFieldError(ValueError):
    """An event without a value that its row needs."""


@dataclass(frozen=True)
class MappingContext:
    """What mappings need besides the event. `drives` has drive letters by device (`\\device\\harddiskvolume3`)."""

    known: KnownProcesses
    masker: Masker
    drives: Mapping[str, str] = field(default_factory=dict)


def required(value: _Value | None, name: str) -> _Value:
    """The value. Raises EventFieldError if the event does not have it."""
    if value is None:
        raise EventFieldError(f"{name} is missing or invalid")
    return value


def event_filetime(event: WindowsEvent) -> int:
    """When it happened: Sysmon's own time, or else when it was logged."""
    return event_values.utc_time(event.data.get("UtcTime")) or event.filetime


def event_time(event: WindowsEvent) -> float:
    """The same in seconds since the epoch."""
    return epoch_seconds(event_filetime(event))


def acting_process(
    event: WindowsEvent, context: MappingContext, pid: int | None, exe: str | None
) -> KnownProcess | None:
    """The process that an event names by its id, and Sysmon by its GUID."""
    if pid is None:
        return None
    guid = event_values.guid(event.data.get("ProcessGuid"))
    return context.known.find(pid, event_filetime(event), exe, guid)


def masked_command_line(line: str | None, masker: Masker) -> CommandLine | None:
    """A command line as its arguments, with secrets masked; None without one."""
    arguments = split_command_line(line) if line else []
    if not arguments:
        return None
    return masker.command_line(b"".join(to_bytes(argument) + b"\0" for argument in arguments))
