"""Which clusters on the bus get one of an agent's places."""

from __future__ import annotations

from zeek_agent.bus.cluster_places import CLUSTERS_MAX, REPLIED_MAX, TRIAL_SECONDS, Candidate, makes_way

OVERDUE = TRIAL_SECONDS + 1


def heard(number: int, since: float = 0.0, **more: bool) -> list[Candidate]:
    return [Candidate(f"c{index}", since, is_heard=True, **more) for index in range(number)]


def test_every_cluster_gets_a_place_while_there_are_some() -> None:
    assert makes_way(heard(CLUSTERS_MAX - 1), CLUSTERS_MAX, is_heard=True, now=0.0) is True
    assert makes_way(heard(CLUSTERS_MAX), CLUSTERS_MAX, is_heard=True, now=0.0) is False


def test_a_cluster_that_has_not_welcomed_makes_way_after_its_trial() -> None:
    known = [*heard(CLUSTERS_MAX - 1, was_welcomed=True), Candidate("silent", 0.0, is_heard=True)]
    assert makes_way(known, CLUSTERS_MAX, is_heard=True, now=TRIAL_SECONDS) is False
    assert makes_way(known, CLUSTERS_MAX, is_heard=True, now=OVERDUE) is known[-1]


def test_a_cluster_that_has_welcomed_keeps_its_place() -> None:
    assert makes_way(heard(CLUSTERS_MAX, was_welcomed=True), CLUSTERS_MAX, is_heard=True, now=1e6) is False


def test_names_in_replies_have_few_places_and_make_way_at_once_for_a_beacon() -> None:
    replied = [Candidate(f"r{index}", float(index), is_heard=False) for index in range(REPLIED_MAX)]
    assert makes_way(replied, CLUSTERS_MAX, is_heard=False, now=0.0) is False
    assert makes_way(replied, CLUSTERS_MAX, is_heard=False, now=OVERDUE) is replied[0]
    full = [*heard(CLUSTERS_MAX - REPLIED_MAX), *replied]
    assert makes_way(full, CLUSTERS_MAX, is_heard=True, now=0.0) is replied[0]
