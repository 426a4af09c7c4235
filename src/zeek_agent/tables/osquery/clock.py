"""The time of day and the time since boot."""

from __future__ import annotations

import time
from collections.abc import Iterator

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

time_of_day = osquery_table(
    "time",
    "the time of day",
    description="One row with the time of the statement. All columns but `local_timezone` are in UTC.",
    columns=[
        Column("weekday", "text", "name of the day, in English"),
        Column("year", "int", "year"),
        Column("month", "int", "month, from 1"),
        Column("day", "int", "day of the month"),
        Column("hour", "int", "hour, from 0"),
        Column("minutes", "int", "minute"),
        Column("seconds", "int", "second"),
        Column("timezone", "text", "always `UTC`"),
        Column("local_timezone", "text", "the host's time zone, such as `CET`"),
        Column("unix_time", "int", "seconds since 1970"),
        Column("timestamp", "text", "as by asctime(3), such as `Sun Nov 29 09:00:00 2026 UTC`"),
        Column("datetime", "text", "ISO 8601, such as `2026-11-29T09:00:00Z`"),
        Column("iso_8601", "text", "the same as `datetime`"),
        Column("date_time", "text", "the same as `datetime`", hidden=True),
    ],
    foreign="win_timestamp:int",
    examples=["SELECT unix_time, iso_8601 FROM time"],
)

uptime = osquery_table(
    "uptime",
    "the time since boot",
    description="One row. Time in which the host was suspended counts.",
    columns=[
        Column("days", "int", "whole days"),
        Column("hours", "int", "hours beyond them"),
        Column("minutes", "int", "minutes beyond them"),
        Column("seconds", "int", "seconds beyond them"),
        Column("total_seconds", "int", "all in seconds"),
    ],
    examples=["SELECT total_seconds FROM uptime"],
)


@time_of_day.snapshot
def now(wanted: Constraints) -> Iterator[Row]:
    seconds = int(wanted.context.clock())
    at = time.gmtime(seconds)
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
    yield (
        time.strftime("%A", at),
        at.tm_year,
        at.tm_mon,
        at.tm_mday,
        at.tm_hour,
        at.tm_min,
        at.tm_sec,
        "UTC",
        time.localtime(seconds).tm_zone,
        seconds,
        f"{time.asctime(at)} UTC",
        iso,
        iso,
        iso,
    )


@uptime.snapshot
def since_boot(wanted: Constraints) -> Iterator[Row]:
    seconds = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    yield seconds // _DAY, seconds % _DAY // _HOUR, seconds % _HOUR // _MINUTE, seconds % _MINUTE, seconds


TABLES = (time_of_day, uptime)
