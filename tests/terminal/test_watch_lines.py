"""The lines of `zeek-agent watch`."""

from __future__ import annotations

from typing import Any

import pytest

from zeek_agent.terminal.console import display_width
from zeek_agent.terminal.watch_lines import PROCESSES_KNOWN, WatchLines
from zeek_agent.terminal.watch_query import COLUMNS, PROCESSES, SOCKETS

USERS = {0: "root", 1000: "alice"}
NOON = 1_795_867_200.25
"""2026-11-28T12:00:00.25Z"""


def process(**columns: Any) -> dict[str, Any]:
    """The start of `ls`, with other values where given."""
    common = {"kind": PROCESSES, "seq": 1, "time": NOON, "state": "started", "pid": 7, "name": "ls", "uid": 1000}
    own = {"ppid": 3, "parent_name": "bash", "cmdline": "ls -l", "entity_id": "e7", "parent_entity_id": "e3"}
    return dict.fromkeys(COLUMNS) | common | own | columns


def flow(**columns: Any) -> dict[str, Any]:
    """An outbound connection of `curl`, with other values where given."""
    common = {"kind": SOCKETS, "seq": 1, "time": NOON, "state": "established", "pid": 9, "name": "curl", "uid": 0}
    ends = {"local_addr": "192.0.2.1", "local_port": 4242, "remote_addr": "198.51.100.7", "remote_port": 443}
    return (
        dict.fromkeys(COLUMNS) | common | ends | {"protocol": 6, "direction": "outbound", "entity_id": "e9"} | columns
    )


def line(event: dict[str, Any], lines: WatchLines | None = None) -> str:
    """The line without the time of day, and without that of the date."""
    *_, shown = (lines or WatchLines()).lines(event, USERS)
    return shown.removeprefix("12:00:00.250 ")


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (process(), "start   alice      ls[7] ls -l (from bash[3])"),
        (process(cmdline=None, exe="/bin/ls", ppid=None), "start   alice      ls[7] /bin/ls"),
        (process(uid=1234), "start   1234       ls[7] ls -l (from bash[3])"),
        (process(uid=None, pid=None, name=None), "start   -          ?[?] ls -l (from bash[3])"),
        (
            process(container_id="3fa4c1d2e5f60718"),
            "start   alice      ls[7] ls -l (from bash[3]) (container 3fa4c1d2e5f6)",
        ),
        (process(state="stopped", exit_code=0, duration=0.0042), "exit    alice      ls[7] status 0 after 4 ms"),
        (process(state="stopped", exit_code=-9, duration=75.0), "exit    alice      ls[7] SIGKILL after 1 min"),
        (process(state="stopped", exit_code=-99), "exit    alice      ls[7] signal 99"),
        (process(state="stopped"), "exit    alice      ls[7]"),
        (flow(), "connect root       curl[9] tcp 192.0.2.1:4242 -> 198.51.100.7:443"),
        (flow(direction="inbound"), "accept  root       curl[9] tcp 192.0.2.1:4242 <- 198.51.100.7:443"),
        (flow(state="closed", protocol=17), "close   root       curl[9] udp 192.0.2.1:4242 -> 198.51.100.7:443"),
        (flow(correction=True), "correct root       curl[9] tcp 192.0.2.1:4242 -> 198.51.100.7:443"),
        (
            flow(state="listen", remote_addr=None, remote_port=None, local_addr="::"),
            "listen  root       curl[9] tcp [::]:4242",
        ),
        (
            flow(protocol=None, local_addr=None, local_port=None, remote_addr=None, remote_port=None, state="listen"),
            "listen  root       curl[9] packets",
        ),
        (
            flow(protocol=1, local_port=None, remote_port=None, listener_stands_in=True),
            "connect root       curl[9] icmp 192.0.2.1 -> 198.51.100.7 "
            "(holds the socket; the process that acted is not known)",
        ),
        (flow(state="dissolved"), "dissolved root       curl[9] tcp 192.0.2.1:4242 -> 198.51.100.7:443"),
    ],
)
def test_an_event_is_one_readable_line(event: dict[str, Any], shown: str) -> None:
    assert line(event) == shown


def test_children_are_shown_below_their_parent() -> None:
    lines = WatchLines()
    assert line(process(pid=3, name="bash", entity_id="e3", parent_entity_id="e1"), lines).endswith("(from bash[3])")
    assert line(process(), lines) == "start   alice      └ ls[7] ls -l"
    assert line(process(pid=8, entity_id="e8", parent_entity_id="e7"), lines) == "start   alice        └ ls[8] ls -l"
    assert line(flow(entity_id="e7"), lines).startswith("connect root       └ curl[9] tcp")
    assert line(process(state="stopped", exit_code=0), lines) == "exit    alice      └ ls[7] status 0"


def test_a_deep_tree_is_not_indented_further_and_the_memory_of_it_is_bounded() -> None:
    lines = WatchLines()
    shown = [
        line(process(entity_id=f"e{number}", parent_entity_id=f"e{number - 1}"), lines)
        for number in range(PROCESSES_KNOWN + 100)
    ]
    assert shown[-1] == shown[8] == f"start   alice      {'  ' * 7}└ ls[7] ls -l"
    assert len(lines._levels) == PROCESSES_KNOWN


def test_the_date_is_shown_before_its_first_event() -> None:
    lines = WatchLines()
    assert lines.lines(flow(), USERS)[0] == "-- 2026-11-28 (UTC)"
    assert len(lines.lines(flow(), USERS)) == 1
    assert lines.lines(flow(time=NOON + 43_200), USERS)[0] == "-- 2026-11-29 (UTC)"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x9b2J", "a\rb", "\x00"])
@pytest.mark.parametrize("column", ["name", "cmdline", "exe", "parent_name", "container_id", "state"])
def test_text_from_the_host_cannot_control_the_terminal(column: str, text: str) -> None:
    event = process(**{"cmdline": None, column: text})
    (_, shown) = WatchLines().lines(event, USERS)
    assert not {"\n", "\r", "\x1b", "\x9b", "\x00"} & set(shown)


def test_a_user_name_cannot_control_the_terminal() -> None:
    assert "\x1b" not in "".join(WatchLines().lines(process(), {1000: "\x1b[31m"}))


def test_lines_fit_the_terminal_and_have_colours_only_there() -> None:
    wide = process(cmdline="ls " + "漢字" * 100)
    (_, cut) = WatchLines(width=60, color=True).lines(wide, USERS)
    assert cut.startswith("\x1b[32m")
    assert cut.endswith("…\x1b[0m")
    assert display_width(cut.removeprefix("\x1b[32m").removesuffix("\x1b[0m")) <= 60
    assert "\x1b" not in line(wide)
    assert line(wide).endswith("漢字 (from bash[3])")


@pytest.mark.parametrize("hidden", ["\u200b", "\u00ad", "\u2060", "\ufeff", "\U000e0041", "\ufe0f", "\u3164", "\u202e"])
def test_characters_that_cannot_be_seen_are_escaped(hidden: str) -> None:
    """A name with one looks like another name."""
    shown = line(process(name=f"ss{hidden}hd"))
    assert hidden not in shown
    assert "".join(f"\\x{byte:02x}" for byte in hidden.encode()) in shown
