"""The unique id of a process: the same from every source, never reused."""

from __future__ import annotations


def entity_id(boot_id: str, pid: int, start_ticks: int) -> str:
    """The id of the process `pid` that started `start_ticks` after the boot `boot_id`: `4f3a9c21d07b-1234-567890`.

    `boot_id` is the text of /proc/sys/kernel/random/boot_id, of which 48 random bits are kept; `pid` counts in the
    initial namespace; `start_ticks` is boot time in units of USER_HZ, rounded down: field 22 of /proc/PID/stat, or a
    kernel stamp `start_boottime * USER_HZ // 1_000_000_000`.
    """
    return f"{boot_id.replace('-', '')[:12]}-{pid}-{start_ticks}"
