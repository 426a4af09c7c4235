"""Units that systemd has loaded, from its manager on the message bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from zeek_agent.host.dbus.bus import Bus, Call
from zeek_agent.host.dbus.messages import DbusError

_SERVICE: Final = "org.freedesktop.systemd1"
_MANAGER_PATH: Final = "/org/freedesktop/systemd1"
_UNITS_AT_ONCE: Final = 64
_UNIT_FIELDS: Final = (str, str, str, str, str, str, str, int, str, str)
"""Of an element of ListUnits: `ssssssouso`."""


class Unit(NamedTuple):
    """A unit, with the meanings of ListUnits; `properties` are those that were asked for."""

    id: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    following: str
    object_path: str
    job_id: int
    job_type: str
    job_path: str
    properties: Mapping[str, str]


def units(
    bus_socket: str, properties: Mapping[str, str], wanted: Callable[[str], bool], check: Callable[[], None]
) -> Iterator[Unit]:
    """The loaded units whose id is wanted. `properties` are texts, each with the D-Bus interface that has it.

    A property that a unit does not have is the empty text. Raises OSError without a bus, and DbusError.
    """
    with Bus(bus_socket, check) as bus:
        (listed,) = bus.call(_SERVICE, _MANAGER_PATH, f"{_SERVICE}.Manager", "ListUnits") or (None,)
        if not isinstance(listed, list) or not all(map(_is_unit, listed)):
            raise DbusError("the list of units is not one")
        found = [unit for unit in listed if wanted(unit[0])]
        for start in range(0, len(found), _UNITS_AT_ONCE):
            some = found[start : start + _UNITS_AT_ONCE]
            calls: list[Call] = [
                (_SERVICE, unit[6], "org.freedesktop.DBus.Properties", "Get", (f"{_SERVICE}.{interface}", name))
                for unit in some
                for name, interface in properties.items()
            ]
            answers = iter(bus.calls(calls))
            for unit in some:
                values = {name: _text(answer) for name, answer in zip(properties, answers, strict=False)}
                yield Unit._make((*unit, values))


def _is_unit(unit: object) -> bool:
    return isinstance(unit, tuple) and tuple(map(type, unit)) == _UNIT_FIELDS


def _text(answer: object) -> str:
    return answer[0] if isinstance(answer, tuple) and answer and isinstance(answer[0], str) else ""
