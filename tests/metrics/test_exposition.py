"""The text of metrics, as Prometheus' own parser reads it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from zeek_agent.metrics.exposition import Exposition, Families, Sums

FAMILIES = Families()
ROWS = FAMILIES.counter("test_rows_total", "rows", ("log", "cause"))
SIZE = FAMILIES.gauge("test_size_bytes", "size")
UNUSED = FAMILIES.gauge("test_unused", "of which there is no sample")


def parsed(exposition: Exposition) -> dict[str, list[tuple[dict[str, str], float]]]:
    families = text_string_to_metric_families(exposition.text())
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}


@pytest.mark.parametrize(
    "hostile",
    ['"', "\\", "\n", '"} 5\ntest_size_bytes 7\n', "\\n", "ünïcode", "\x1b[31m\x00", "", "{}", 'a="b",', "\u2028"],
)
def test_any_text_in_a_label_stays_in_the_label(hostile: str) -> None:
    exposition = Exposition(FAMILIES)
    exposition.add(ROWS, 3, hostile, "disk")
    exposition.add(SIZE, 4)
    assert parsed(exposition) == {
        "test_rows": [({"log": hostile, "cause": "disk"}, 3)],
        "test_size_bytes": [({}, 4)],
    }


def test_invalid_utf8_becomes_question_marks() -> None:
    exposition = Exposition(FAMILIES)
    exposition.add(ROWS, 1, "\udcff", "")
    assert parsed(exposition)["test_rows"][0][0]["log"] == "?"


@pytest.mark.parametrize("value", [0, 1, 2**53, 0.1, 1e-9, 1e22, 1795902906.0702972, -3, True])
def test_values_are_exact(value: float) -> None:
    exposition = Exposition(FAMILIES)
    exposition.add(SIZE, value)
    assert parsed(exposition)["test_size_bytes"] == [({}, value)]


def test_what_is_not_known_has_no_sample() -> None:
    exposition = Exposition(FAMILIES)
    exposition.add(SIZE, None)
    assert exposition.text() == ""


def test_families_keep_their_order_whatever_the_order_of_samples() -> None:
    exposition = Exposition(FAMILIES)
    exposition.add(SIZE, 1)
    exposition.add(ROWS, 2, "a", "b")
    exposition.add(ROWS, 3, "a", "c")
    assert [*parsed(exposition)] == ["test_rows", "test_size_bytes"]
    assert exposition.text().count("# HELP test_rows_total") == 1


def test_a_sample_has_as_many_label_values_as_its_family_has_labels() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Exposition(FAMILIES).add(ROWS, 1, "only one")


def test_sums_give_one_sample_for_each_combination_of_labels() -> None:
    sums, exposition = Sums(), Exposition(FAMILIES)
    for log, number in (("a", 1), ("b", 2), ("a", 3)):
        sums.count(number, log, "x")
    sums.add_to(exposition, ROWS)
    assert parsed(exposition)["test_rows"] == [({"log": "a", "cause": "x"}, 4), ({"log": "b", "cause": "x"}, 2)]
