"""Lines of `zeek-agent watch`: an event as one line for people."""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from zeek_agent.terminal.console import BOLD, DIM, GREEN, PLAIN, RED, YELLOW, age, cut, display_width
from zeek_agent.terminal.watch_query import PROCESSES
from zeek_agent.text import visible

CYAN: Final = "\x1b[36m"
PROCESSES_KNOWN: Final = 10_000
"""Processes whose place in the tree is remembered; the one that was seen longest ago is forgotten first."""
_LEVELS_SHOWN: Final = 8
_USER_WIDTH: Final = 10
_CONTAINER_SHOWN: Final = 12
"""Characters of a container id, as container engines show it."""
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp", 136: "udplite"}
_VERBS: Final = {
    ("started", None): ("start", GREEN),
    ("stopped", None): ("exit", DIM),
    ("established", "outbound"): ("connect", CYAN),
    ("established", "inbound"): ("accept", YELLOW),
    ("closed", None): ("close", DIM),
    ("failed", None): ("fail", RED),
    ("listen", None): ("listen", BOLD),
    ("expired", None): ("expire", DIM),
}


class WatchLines:
    """Formats events. `width` is the terminal's; None for lines of any length."""

    def __init__(self, *, width: int | None = None, color: bool = False) -> None:
        self._width = width
        self._color = color
        self._levels: OrderedDict[str, int] = OrderedDict()
        self._day: str | None = None

    def lines(self, event: Mapping[str, Any], users: Mapping[int, str]) -> list[str]:
        """The line of an event, after one with the date if the event before was on another day.

        `users` has names by uid.
        """
        moment = datetime.fromtimestamp(event["time"], UTC)
        day = moment.strftime("%Y-%m-%d")
        verb, color = _verb(event)
        line = (
            f"{moment.strftime('%H:%M:%S')}.{moment.microsecond // 1000:03} {verb:7} "
            f"{_padded(_user(event['uid'], users), _USER_WIDTH)} {self._what(event)}"
        )
        if self._width is not None and display_width(line) > self._width:
            line = cut(line, self._width)[0]
        dated = [] if day == self._day else [f"-- {day} (UTC)"]
        self._day = day
        return [*dated, f"{color}{line}{PLAIN}" if self._color and color else line]

    def _what(self, event: Mapping[str, Any]) -> str:
        level = self._level(event)
        tree = "  " * (level - 1) + "└ " if level else ""
        container = event["container_id"]
        parts = [f"{tree}{_named(event['name'], event['pid'])}"]
        parts.append(self._process(event, level) if event["kind"] == PROCESSES else _flow(event))
        if container is not None:
            parts.append(f"(container {visible(container.rpartition('/')[2][:_CONTAINER_SHOWN])})")
        return " ".join(part for part in parts if part)

    def _process(self, event: Mapping[str, Any], level: int) -> str:
        if event["state"] == "stopped":
            return _ending(event)
        command = visible(event["cmdline"] or event["exe"] or "")
        if level or event["ppid"] is None:
            return command
        return f"{command} (from {_named(event['parent_name'], event['ppid'])})"

    def _level(self, event: Mapping[str, Any]) -> int:
        """How deep a process is below one whose start was shown; sockets are shown beside their process."""
        own, parent = event["entity_id"], event["parent_entity_id"]
        if own is None:
            return 0
        level = self._levels.get(own)
        if level is None:
            level = 0 if parent is None or parent not in self._levels else self._levels[parent] + 1
        if event["kind"] == PROCESSES:
            self._levels[own] = min(level, _LEVELS_SHOWN)
            self._levels.move_to_end(own)
            if len(self._levels) > PROCESSES_KNOWN:
                self._levels.popitem(last=False)
        return min(level, _LEVELS_SHOWN)


def _user(uid: int | None, users: Mapping[int, str]) -> str:
    return "-" if uid is None else visible(users.get(uid, str(uid)))


def _verb(event: Mapping[str, Any]) -> tuple[str, str]:
    """What happened, in one word, and its colour."""
    state = event["state"]
    verb = _VERBS.get((state, event["direction"])) or _VERBS.get((state, None))
    if verb is None:
        return visible(str(state)), ""
    return ("correct", verb[1]) if event["correction"] else verb


def _named(name: str | None, pid: int | None) -> str:
    return f"{visible(name) if name else '?'}[{'?' if pid is None else pid}]"


def _ending(event: Mapping[str, Any]) -> str:
    code, duration = event["exit_code"], event["duration"]
    if code is None:
        how = ""
    elif code < 0:
        how = _signal_name(-code)
    else:
        how = f"status {code}"
    if duration is None:
        return how
    after = f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s" if duration < 60 else age(duration)
    return f"{how} after {after}".strip()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _flow(event: Mapping[str, Any]) -> str:
    protocol = event["protocol"]
    name = "packets" if protocol is None else _PROTOCOLS.get(protocol, f"protocol {protocol}")
    local = _endpoint(event["local_addr"], event["local_port"])
    remote = _endpoint(event["remote_addr"], event["remote_port"])
    arrow = "<-" if event["direction"] == "inbound" else "->"
    ends = f"{local} {arrow} {remote}" if remote else local
    stands_in = "(holds the socket; the process that acted is not known)" if event["listener_stands_in"] else ""
    return " ".join(part for part in (name, ends, stands_in) if part)


def _endpoint(address: str | None, port: int | None) -> str:
    if address is None:
        return "" if port is None else f"*:{port}"
    shown = f"[{address}]" if ":" in address else address
    return shown if port is None else f"{shown}:{port}"


def _padded(text: str, width: int) -> str:
    if display_width(text) > width:
        text = cut(text, width)[0]
    return text + " " * (width - display_width(text))
