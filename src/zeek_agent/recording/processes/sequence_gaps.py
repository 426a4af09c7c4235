"""Counts the messages that are missing in the numbered output of eslogger."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeek_agent.host.macos.eslogger_line import Sequence


class SequenceGaps:
    """The lost messages of one run of eslogger, which numbers all messages, and those of each type.

    The numbers of all messages decide; those of the types show what was lost, and decide if there are no others. A line
    without numbers may be one of those that seem to be missing: it is not lost, but counted as unreadable elsewhere.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.by_type: Counter[int] = Counter()
        """Lost and unreadable messages by type of event."""
        self._last: int | None = None
        self._last_of_type: dict[int, int] = {}
        self._unreadable = 0

    def note(self, sequence: Sequence) -> None:
        """Note the numbers of the next line, whether or not it could be read otherwise."""
        overall, of_type, event_type = sequence
        if of_type is not None and event_type is not None:
            self._note_type(of_type, event_type)
        elif overall is None:
            self._unreadable += 1
        if overall is not None:
            if self._last is not None:
                self.lost += max(overall - self._last - 1 - self._unreadable, 0)
            self._last, self._unreadable = overall, 0
        elif self._last is None:
            self.lost = max(self.lost, self.by_type.total() - self._unreadable)

    def _note_type(self, number: int, event_type: int) -> None:
        last = self._last_of_type.get(event_type)
        if last is not None and number > last + 1:
            self.by_type[event_type] += number - last - 1
        self._last_of_type[event_type] = number
