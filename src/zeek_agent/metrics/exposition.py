"""Metric families and their text, in Prometheus' exposition format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """The declaration of a metric. Names of counters end in `_total`; times are in seconds, sizes in bytes."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ()


class Families:
    """Declarations of families, in order."""

    def __init__(self) -> None:
        self._declared: list[Family] = []

    def __iter__(self) -> Iterator[Family]:
        return iter(self._declared)

    def counter(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Family:
        """Declare a number that only grows, from 0 at the start of the process."""
        return self._declare(Family(name, "counter", meaning, labels))

    def gauge(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Family:
        """Declare a number that grows and shrinks."""
        return self._declare(Family(name, "gauge", meaning, labels))

    def _declare(self, family: Family) -> Family:
        self._declared.append(family)
        return family


class Exposition:
    """Collects samples. Each family of `families` appears in their order, those without samples are left out."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._samples: dict[Family, list[str]] = {family: [] for family in families}

    def add(self, family: Family, value: float | bool | None, *labels: str) -> None:
        """Add a sample with the values of the family's labels; nothing if the value is not known."""
        if value is None:
            return
        named = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(family.labels, labels, strict=True))
        self._samples[family].append(f"{family.name}{f'{{{named}}}' if named else ''} {_number(value)}\n")

    def text(self) -> str:
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for family, samples in self._samples.items():
            if samples:
                yield f"# HELP {family.name} {family.meaning}\n# TYPE {family.name} {family.kind}\n"
                yield from samples


class Sums:
    """Sums of values by label values, for what would otherwise give several samples of one name."""

    def __init__(self) -> None:
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def count(self, value: float, *labels: str) -> None:
        self._sums[labels] += value

    def add_to(self, exposition: Exposition, family: Family) -> None:
        for labels, value in self._sums.items():
            exposition.add(family, value, *labels)


def _number(value: float | bool) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").encode(errors="replace").decode()
