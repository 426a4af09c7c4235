"""Many events in the store of a root, put there while its agent does not run."""

from __future__ import annotations

from debian_root import DebianRoot

EVENTS = 100_000
FILL = f"""
import apsw
store = apsw.Connection("/var/lib/zeek-agent/events.db")
columns = [row[1] for row in store.execute("PRAGMA table_info(processes_events)") if row[1] != "seq"]
values = {{"name": "'upgraded'", "pid": "number"}}
selected = ", ".join(values.get(name, name) for name in columns)
with store:
    store.execute(
        "WITH RECURSIVE numbers(number) AS "
        "(SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < {EVENTS - 1}), "
        "last AS (SELECT * FROM processes_events ORDER BY seq DESC LIMIT 1) "
        f"INSERT INTO processes_events ({{', '.join(columns)}}) SELECT {{selected}} FROM numbers, last"
    )
"""
"""Copies the last event, with a number as its pid."""


def fill_store(root: DebianRoot) -> None:
    """Store `EVENTS` events, without an agent, in a store that has one."""
    (root / "root/fill.py").write_text(FILL)
    root.run("/opt/zeek-agent/bin/python3 -I /root/fill.py")
