"""Which of two tables a statement reads where both osquery and the agent have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osqueryd import Bridged, FakeTable, Osqueryd, usual_tables
from waiting import until

from zeek_agent.database.database import Profile
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column
from zeek_agent.table import Table
from zeek_agent.tables.osquery._declaration import osquery_events, osquery_table


def packages() -> Table:
    table = osquery_table("deb_packages", "own packages", description="-", columns=[Column("name", "text", "-")])
    table.snapshot(lambda wanted: [("own",)])
    return table


def users() -> Table:
    table = osquery_table("users", "own users", description="-", columns=[Column("username", "text", "-")])
    table.snapshot(lambda wanted: [("own",)])
    return table


NATIVE = Table("users", "users", description="-", columns=[Column("name", "text", "-")])
NATIVE.snapshot(lambda wanted: [("native",)])


async def first(bridged: Bridged, name: str, profile: Profile = Profile.FULL) -> Any:
    column = "name" if "packages" in name or (name == "users" and profile is Profile.FULL) else "username"
    return (await bridged.db.query(f"SELECT {column} FROM {name} LIMIT 1", profile=profile)).rows[0][0]


async def test_the_agent_s_own_tables_come_first(tmp_path: Path) -> None:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as osquery:
        async with Bridged(osquery, [packages(), users(), NATIVE]) as bridged:
            for profile in (Profile.FULL, Profile.OSQUERY):
                assert await first(bridged, "deb_packages", profile) == "own"
                assert await first(bridged, "osquery_deb_packages", profile) == "own"
                assert await first(bridged, "osquery_users", profile) == "own"
            assert await first(bridged, "users") == "native"
            assert await first(bridged, "users", Profile.OSQUERY) == "own"
            assert "odd" in bridged.db.tables, "what only osquery has is there"


async def test_osquery_s_tables_come_first_where_the_operator_prefers_them(tmp_path: Path) -> None:
    osquery = Osqueryd(tmp_path / "osquery.em", usual_tables())
    async with Bridged(osquery, [packages(), users(), NATIVE], prefer=("deb_*", "users")) as bridged:
        assert await first(bridged, "deb_packages") == "own"
        with osquery:
            await until(lambda: _refreshed(bridged, "osquery's table deb_packages"))
            for profile in (Profile.FULL, Profile.OSQUERY):
                assert await first(bridged, "deb_packages", profile) == "package0"
                assert await first(bridged, "osquery_deb_packages", profile) == "package0"
                assert await first(bridged, "osquery_users", profile) == "root"
            assert await first(bridged, "users") == "native"
            assert await first(bridged, "users", Profile.OSQUERY) == "root"
        await until(lambda: _refreshed(bridged, "own packages"))
        for name in ("deb_packages", "osquery_deb_packages", "osquery_users"):
            assert await first(bridged, name) == "own"
        assert await first(bridged, "users", Profile.OSQUERY) == "own"


async def _refreshed(bridged: Bridged, summary: str) -> bool:
    await bridged.bridge.refresh()
    return bridged.db.tables["deb_packages"].summary == summary


async def test_recorded_events_of_osquery_replace_the_agent_s(tmp_path: Path) -> None:
    own = osquery_events(
        "file_events",
        "own events",
        description="-",
        of="own_events",
        where="true",
        columns=[(Column("target_path", "text", "-"), "'own'")],
    )
    of = Table("own_events", "-", description="-", columns=[Column("time", "time", "-")], kind="events")
    tables = usual_tables()
    tables["file_events"] = FakeTable(
        {"time": "BIGINT", "target_path": "TEXT", "action": "TEXT", "eid": "TEXT"},
        [(1_700_000_000, "/etc/0", "UPDATED", "1")],
        hidden=frozenset({"eid"}),
    )
    store = EventStore(tmp_path / "events.db", [of])
    store.append("own_events", [(1.0,)])
    store.flush()
    with Osqueryd(tmp_path / "osquery.em", tables) as osquery:
        async with Bridged(osquery, [own, of], store=store) as bridged:
            assert await bridged.rows("SELECT target_path FROM file_events") == [("own",)]
        async with Bridged(osquery, [own, of], store=store, event_tables=("file_events",)) as bridged:
            store.flush()
            for profile in (Profile.FULL, Profile.OSQUERY):
                for name in ("file_events", "osquery_file_events"):
                    result = await bridged.db.query(f"SELECT target_path FROM {name}", profile=profile)
                    assert result.rows == [("/etc/0",)]
    store.close()
