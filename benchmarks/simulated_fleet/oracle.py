"""The oracle: is every row of every store in the logs, how often, and is there any that no store recorded?

It reads logs as Zeek writes them (TSV with a `#fields` line), line by line, and keeps one byte per row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from simulated_fleet.fake_host import check_sum

EXAMPLES: Final = 5
_MANY: Final = 255


class Recorded(NamedTuple):
    """What a host has recorded: rows `first` to `last` are retained, `lost` were counted as expired undelivered."""

    agent_id: str
    store: str
    first: int
    last: int
    lost: int = 0


class Line(NamedTuple):
    agent_id: str
    store: str
    number: int
    check_sum: int
    at: float
    """When it was logged, in seconds since the epoch."""
    latency: float
    """Seconds from when its batch was encoded."""


@dataclass(slots=True)
class Findings:
    """Rows by how often they are in the logs; examples of what should not be."""

    recorded: int = 0
    once: int = 0
    repeated: int = 0
    """Rows that are there more than once."""
    missing: int = 0
    expired: int = 0
    """Rows that are missing because their store's retention removed them, and that the agent has counted."""
    unknown: int = 0
    """Lines that no store has recorded."""
    examples: list[str] = field(default_factory=list)
    latencies: array[float] = field(default_factory=lambda: array("d"), repr=False)

    @property
    def is_exactly_once(self) -> bool:
        return self.recorded > 0 and self.missing == self.repeated == self.unknown == 0

    @property
    def is_at_least_once(self) -> bool:
        return self.recorded > 0 and self.missing == self.unknown == 0

    def __str__(self) -> str:
        told = f"{self.recorded:,} rows: {self.once:,} once, {self.repeated:,} repeated, {self.missing:,} missing"
        told += f", {self.unknown:,} unknown" + (f", {self.expired:,} expired" if self.expired else "")
        return told + (f" (for example {'; '.join(self.examples)})" if self.examples else "")

    def note(self, example: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


def compare(recorded: Iterable[Recorded], logs: Iterable[Path], others: Iterable[str] = ()) -> Findings:
    """Compare what was recorded with the logs. Lines of the agents `others` are left out."""
    found = Findings()
    stores: dict[tuple[str, str], tuple[Recorded, bytearray]] = {}
    for one in recorded:
        stores[one.agent_id, one.store] = (one, bytearray(one.last + 1))
        found.recorded += one.last
    left_out = frozenset(others)
    for log in logs:
        for line in lines(log):
            if line.agent_id in left_out:
                continue
            known = stores.get((line.agent_id, line.store))
            is_known = known is not None and 1 <= line.number <= known[0].last
            if known is None or not is_known or line.check_sum != check_sum(line.store, line.number):
                found.unknown += 1
                found.note(f"unknown {line.agent_id} {line.store} {line.number}")
                continue
            counts = known[1]
            counts[line.number] = min(counts[line.number] + 1, _MANY)
            found.latencies.append(line.latency)
    for one, counts in stores.values():
        _count(one, counts, found)
    return found


def _count(one: Recorded, counts: bytearray, found: Findings) -> None:
    missing = [number for number in range(1, one.last + 1) if not counts[number]] if 0 in counts[1:] else []
    expired = [number for number in missing if number < one.first]
    if 0 < len(expired) <= one.lost:
        found.expired += len(expired)
        missing = [number for number in missing if number >= one.first]
    once = counts.count(1)
    found.once += once
    found.missing += len(missing)
    repeated = one.last - once - counts[1:].count(0)
    found.repeated += repeated
    if missing:
        found.note(f"missing {one.agent_id} {one.store} {missing[0]}-{missing[-1]} ({len(missing)} of {one.last})")
    if repeated:
        first = next(number for number in range(1, one.last + 1) if counts[number] > 1)
        found.note(f"repeated {one.agent_id} {one.store} from {first} ({repeated} of {one.last})")


def lines(log: Path) -> Iterator[Line]:
    """The rows of a log as far as it is complete."""
    places: Mapping[str, int] = {}
    with log.open(encoding="utf-8") as file:
        for text in file:
            if text.startswith("#"):
                if text.startswith("#fields"):
                    places = {name: place for place, name in enumerate(text.rstrip("\n").split("\t")[1:])}
                continue
            if not text.endswith("\n"):
                return  # its writer was killed
            cells = text.rstrip("\n").split("\t")
            at = float(cells[places["ts" if "ts" in places else "t"]])  # the collector's name for it
            yield Line(
                cells[places["hid"]],
                cells[places["store"]],
                int(cells[places["number"]]),
                int(cells[places["check_sum"]]),
                at,
                at - float(cells[places["host_time"]]) if "host_time" in places else 0.0,
            )


def batches(log: Path) -> int:
    """How many batches a stand-in has logged: lines of one host with one time are one."""
    number, before = 0, ("", 0.0)
    for line in lines(log):
        number += (line.agent_id, line.at) != before
        before = (line.agent_id, line.at)
    return number


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
