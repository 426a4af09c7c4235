"""Which clusters have one of an agent's places, so that nobody who invents names keeps out a cluster that serves it.

The subject of a beacon names its cluster, and a gateway's credentials permit that of its own cluster only. A reply to
`who` may name any, so what is known from replies alone has few places and makes way for what is heard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

CLUSTERS_MAX: Final = 16
"""Clusters with which an agent has sessions."""
REPLIED_MAX: Final = 4
"""Of them those that are only known from a reply, and have never welcomed the agent."""
TRIAL_SECONDS: Final = 15.0
"""A cluster that has not welcomed the agent within this time, which is enough for a hello, may lose its place."""


@dataclass(slots=True)
class Candidate:
    """A cluster that was not named in the settings."""

    name: str
    since: float
    is_heard: bool
    """Whether there was a beacon of it, not only a reply."""
    was_welcomed: bool = False


def makes_way(known: Iterable[Candidate], places: int, *, is_heard: bool, now: float) -> Candidate | bool:
    """Whether a new cluster, heard or replied, gets one of so many places: the cluster that it replaces, or True."""
    others = list(known)
    untried = [one for one in others if not one.was_welcomed]
    replied = [one for one in untried if not one.is_heard]
    if len(others) < places and (is_heard or len(replied) < REPLIED_MAX):
        return True
    if is_heard:
        if replied:
            return min(replied, key=lambda one: one.since)
        candidates = untried
    else:
        candidates = replied
    overdue = [one for one in candidates if now - one.since > TRIAL_SECONDS]
    return min(overdue, key=lambda one: one.since) if overdue else False
