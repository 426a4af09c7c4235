"""The names that processes looked up, by the addresses that they got."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.recording.dns.dns_event import Lookup
    from zeek_agent.recording.dns.dns_message import Message

NAMES_MAX: Final = 20_000
"""Addresses of all processes that are remembered; beyond, those that were looked up longest ago are forgotten."""
_ALIAS: Final = 5
_ADDRESS_TYPES: Final = frozenset({1, 28})


class RemoteNames:
    """What each process looked up for an address. One thread writes and reads."""

    def __init__(self) -> None:
        self._names: OrderedDict[tuple[str, str], str] = OrderedDict()

    def learn(self, lookup: Lookup, answer: Message) -> None:
        """Remember the addresses in an answer as those of the name that was asked for, or of its alias.

        A server can add those of other names, which resolvers ignore.
        """
        if lookup.process is None or lookup.name is None:
            return
        aliases = {each.name: each.text for each in answer.answers if each.type == _ALIAS}
        names, name = {lookup.name}, aliases.get(lookup.name)
        while name is not None and name not in names:
            names.add(name)
            name = aliases.get(name)
        for each in answer.answers:
            if each.type in _ADDRESS_TYPES and each.name in names:
                key = lookup.process.entity_id, each.text
                self._names[key] = lookup.name
                self._names.move_to_end(key)
        while len(self._names) > NAMES_MAX:
            self._names.popitem(last=False)

    def find(self, entity_id: str | None, address: str | None) -> str | None:
        """The name that this process looked up last for an address; None if it looked up none."""
        if entity_id is None or address is None:
            return None
        return self._names.get((entity_id, address))
