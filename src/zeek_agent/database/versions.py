"""The order of version numbers, with the same results as osquery's `version_compare` and `version` collations.

A version consists of segments, divided by `~`, `-`, `^`, `.` or `:`. The first segment that differs decides: the longer
one is greater, and of segments with equal length that with the greater character. That orders numbers without leading
zeros correctly, except for the last one of RHEL's flavor (1.9 is greater than 1.10 there), and is not what dpkg and rpm
do in all cases. Flavors differ in the meaning of delimiters and of what follows where one version ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from zeek_agent.errors import SqlError

DELIMITERS: Final = "~-^.:"
"""From the least to the greatest, where a flavor orders them."""
_DELIMITER: Final = re.compile(f"[{re.escape(DELIMITERS)}]")
_UNIFIED: Final = str.maketrans(DELIMITERS, "." * len(DELIMITERS))
_REMAINDERS: Final = {"~": 1, "-": 0, "^": -1}
"""Order of a version that ends, by the delimiter with which the other one continues."""


@dataclass(frozen=True, slots=True)
class Flavor:
    """How versions of a kind of package compare."""

    epochs: bool = False
    """Whether a version with an epoch (`1:`) is greater than one without."""
    ordered_delimiters: bool = False
    """Whether different delimiters at the same place decide."""
    remainders: bool = False
    """Whether the delimiter that follows where one version ends decides: see `_REMAINDERS`."""
    longer_numbers: bool = False
    """Whether the longer version is greater if the other one ends with a digit, whatever differs in that segment."""


COLLATIONS: Final = {
    "version": Flavor(),
    "version_arch": Flavor(epochs=True, remainders=True, longer_numbers=True),
    "version_dpkg": Flavor(epochs=True, ordered_delimiters=True),
    "version_rhel": Flavor(epochs=True, ordered_delimiters=True, remainders=True),
}
"""Flavors by the names of their collations."""


def version_compare(left: Any, right: Any, flavor: Any = "") -> int | None:
    """-1, 0 or 1: whether the version `left` is less than, equal to or greater than `right`. Flavors are `ARCH`, `DPKG`
    and `RHEL`; without one, versions compare by their segments alone."""
    if left is None or right is None or flavor is None:
        return None
    if not isinstance(left, str) or not isinstance(right, str):
        raise SqlError("version_compare: a version is not a text, such as '1.10'")
    name = f"version_{flavor}".lower() if flavor else "version"
    if not isinstance(flavor, str) or name not in COLLATIONS:
        raise SqlError("version_compare: the flavor is not one of ARCH, DPKG and RHEL")
    return compare_versions(left, right, COLLATIONS[name])


def compare_versions(left: str, right: str, flavor: Flavor) -> int:
    """-1, 0 or 1. Takes time in proportion to the length of the shorter version, and one search in the other."""
    if left == right:
        return 0
    if not left or not right:
        return _sign(len(left) - len(right))
    if flavor.epochs and (epochs := left.find(":") - right.find(":")):
        return _sign(epochs)
    return _compare_segments(left, right, flavor)


def _compare_segments(left: str, right: str, flavor: Flavor) -> int:
    if flavor.ordered_delimiters:
        place = _first_difference(left, right)
    else:
        place = _first_difference(left.translate(_UNIFIED), right.translate(_UNIFIED))
    if place == min(len(left), len(right)):
        return _compare_ends(left, right, 0, flavor)
    mine, other = DELIMITERS.find(left[place]), DELIMITERS.find(right[place])
    if mine >= 0 or other >= 0:
        return _sign(mine - other) if mine >= 0 and other >= 0 else _sign(other - mine)
    difference = 1 if left[place] > right[place] else -1
    left_end, right_end = _segment_end(left, place), _segment_end(right, place)
    if min(left_end, right_end) == min(len(left), len(right)):
        return _compare_ends(left, right, difference, flavor)
    return _sign(left_end - right_end) or difference


def _compare_ends(left: str, right: str, difference: int, flavor: Flavor) -> int:
    """The order of versions of which the shorter one ends in, or right after, the segment that differs, if any does."""
    if len(left) == len(right):
        return difference
    if len(left) > len(right):
        return -_compare_ends(right, left, -difference, flavor)
    following = right[len(left)]
    if flavor.remainders:
        if following in _REMAINDERS:
            return _REMAINDERS[following]
        if difference and not (flavor.longer_numbers and left[-1] in "0123456789"):
            return difference
    elif difference and following in DELIMITERS:
        return difference
    return -1


def _first_difference(left: str, right: str) -> int:
    """The first place at which they differ; the shorter one's length if it is the beginning of the other."""
    equal, unequal = 0, min(len(left), len(right)) + 1
    while unequal - equal > 1:
        middle = (equal + unequal) // 2
        if left[equal:middle] == right[equal:middle]:
            equal = middle
        else:
            unequal = middle
    return equal


def _segment_end(version: str, start: int) -> int:
    found = _DELIMITER.search(version, start)
    return len(version) if found is None else found.start()


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
