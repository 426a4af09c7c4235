"""What happens to a fleet while its hosts record, and what the oracle must find afterwards.

Each scenario records at a steady rate, does its damage meanwhile, waits until all is delivered, and returns an outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from simulated_fleet.oracle import Findings, quantile
from simulated_fleet.rig import Fleet

DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is recorded, and for how long things are broken."""

    rows_per_second: float = 1.0
    """Of each host."""
    seconds: float = 6.0
    """How long the hosts record."""
    down_seconds: float = 2.0
    burst_rows: int = 20
    """Rows of each host that are recorded during an outage."""
    delivered_within: float = 60.0
    """Seconds for the rest, once nothing is recorded any more."""
    away: int = 20
    """Hosts that are away for a day."""


@dataclass(slots=True)
class Outcome:
    """What the oracle found, and what it took."""

    findings: Findings
    resident: dict[str, int]
    """Peak of resident memory in KiB, by process."""
    seconds_to_deliver: float
    """From the end of recording."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        latencies = self.findings.latencies
        spread = f"p50 {quantile(latencies, 0.5):.3f} s, p99 {quantile(latencies, 0.99):.3f} s" if latencies else ""
        resident = ", ".join(f"{name} {kib / 1024:.0f} MB" for name, kib in sorted(_largest(self.resident).items()))
        told = [
            str(self.findings),
            f"all delivered {self.seconds_to_deliver:.1f} s after the last row",
            spread,
            resident,
        ]
        return "; ".join(filter(None, [*told, *self.notes]))


def _largest(resident: dict[str, int]) -> dict[str, int]:
    """The peaks, one for all simulators and one for all canaries: the largest."""
    found: dict[str, int] = {}
    for name, kib in resident.items():
        kind = name.rpartition("-")[0] if name.startswith(("simulator", "canary")) else name
        found[kind] = max(found.get(kind, 0), kib)
    return found


def undisturbed(fleet: Fleet, scale: Scale) -> Outcome:
    """Nothing happens."""
    return _record(fleet, scale, ())


def killed(fleet: Fleet, scale: Scale, names: Sequence[str]) -> Outcome:
    """These servers are killed one after the other, and each starts again some time later."""

    def kill_and_restart(name: str) -> Callable[[], None]:
        def act() -> None:
            fleet.servers[name].kill()
            time.sleep(scale.down_seconds)
            fleet.restart(name)

        return act

    return _record(fleet, scale, [kill_and_restart(name) for name in names])


def stopped(fleet: Fleet, scale: Scale, name: str) -> Outcome:
    """A server stops for some time without its connections ending: a partition, or a peer that does not read."""

    def act() -> None:
        with fleet.servers[name].process.paused():
            time.sleep(scale.down_seconds)

    return _record(fleet, scale, [act])


def outage(fleet: Fleet, scale: Scale, name: str) -> Outcome:
    """A server is away while all hosts record many rows; when it is back, all of them come at once."""

    def act() -> None:
        fleet.servers[name].kill()
        fleet.simulators.burst(scale.burst_rows)
        time.sleep(scale.down_seconds)
        fleet.restart(name)

    return _record(fleet, scale, [act])


def away(fleet: Fleet, scale: Scale, hours: float) -> Outcome:
    """Some laptops leave, record for hours of their own clocks, and come back at the other leaf node.

    Each time others, since a clock that was set forward stays so.
    """
    first, *_, last = fleet.simulators.processes
    half = scale.away // 2
    leaving = [one.numbers[fleet.gone : fleet.gone + half] for one in (first, last)]
    fleet.gone += half

    def act() -> None:
        for numbers in leaving:
            fleet.simulators.send_away(numbers)
        time.sleep(scale.down_seconds)
        for numbers, servers in zip(leaving, reversed(fleet.leaf_urls), strict=True):
            fleet.simulators.bring_back(
                numbers, servers, away_seconds=hours * 3600.0, rows_per_second=1_000 / DAY_SECONDS
            )

    return _record(fleet, scale, [act])


def _record(fleet: Fleet, scale: Scale, acts: Sequence[Callable[[], None]]) -> Outcome:
    """Record, and act at even intervals meanwhile."""
    end = fleet.simulators.record(scale.rows_per_second, scale.seconds)
    canary_rows = max(1, int(scale.rows_per_second * scale.seconds / (len(acts) + 2)))
    begin = end - scale.seconds
    for number, act in enumerate(acts, 1):
        _sleep_until(begin + scale.seconds * number / (len(acts) + 1))
        _record_canaries(fleet, canary_rows)
        act()
        _record_canaries(fleet, canary_rows)
    _sleep_until(end)
    _record_canaries(fleet, canary_rows)
    waiting = time.monotonic()
    fleet.simulators.wait_delivered(scale.delivered_within)
    seconds = time.monotonic() - waiting
    figures = fleet.simulators.status()
    findings = fleet.findings(scale.delivered_within)
    outcome = Outcome(findings, fleet.sampler.peaks(), seconds)
    outcome.notes.append(f"{figures.lost} rows expired")
    return outcome


def _record_canaries(fleet: Fleet, rows: int) -> None:
    for canary in fleet.canaries:
        canary.record(rows)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


SCENARIOS: Final[Mapping[str, Callable[[Fleet, Scale], Outcome]]] = {
    "nothing happens": undisturbed,
    "both gateways are killed": lambda fleet, scale: killed(fleet, scale, ["gateway-0", "gateway-1"]),
    "a leaf node is killed": lambda fleet, scale: killed(fleet, scale, ["leaf-a"]),
    "the hub is killed": lambda fleet, scale: killed(fleet, scale, ["hub"]),
    "a leaf node is cut off": lambda fleet, scale: stopped(fleet, scale, "leaf-b"),
    "the recipient does not read": lambda fleet, scale: stopped(fleet, scale, "recipient"),
    "an outage of the hub": lambda fleet, scale: outage(fleet, scale, "hub"),
    "laptops are away for a day": lambda fleet, scale: away(fleet, scale, 23.0),
    "laptops are away for longer than the retention": lambda fleet, scale: away(fleet, scale, 30.0),
}
"""In each, every row must be in the logs exactly once."""


def recipient_killed(fleet: Fleet, scale: Scale) -> Outcome:
    """The recipient is killed and loses what it had not written: every row is there at least once."""
    return killed(fleet, scale, ["recipient"])
