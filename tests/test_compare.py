"""docs/compare.md: our figures are those of the benchmarks, and others' have a source."""

from __future__ import annotations

import re

from places import ROOT

PAGE = (ROOT / "docs/compare.md").read_text()
TEXT, _, SOURCES = PAGE.partition("\n## Sources\n")
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text()


def row(name: str) -> list[str]:
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_citation_has_a_source_and_each_source_is_cited() -> None:
    listed = re.findall(r"^(\d+)\. \[", SOURCES, re.MULTILINE)
    assert listed == [str(number) for number in range(1, len(listed) + 1)]
    assert set(re.findall(r"\[(\d+)\]", TEXT)) == set(listed)
    assert len(re.findall(r"\]\(https://", SOURCES)) >= len(listed)


def test_our_figures_are_those_of_the_benchmarks() -> None:
    by_rate = row("Zeek Agent, eBPF, exec and exit, delivered to Zeek")
    assert by_rate[1].startswith("2.4-2.8 (0.8-2.2 ")
    assert (
        f"| exec and exit (2 rows), eBPF | 0.8-2.2 | 2.4-2.8 | {by_rate[2]} (120-280) | {by_rate[3]} (38-104) |"
        in BENCHMARKS
    )
    audit = row("Zeek Agent, audit")
    assert f"| exec and exit, audit | 3.4 | {audit[1]} | {audit[2]} | {audit[3]} (809) |" in BENCHMARKS
    memory = re.findall(r"^\| Zeek Agent \| ([0-9-]+) MB at rest", TEXT, re.MULTILINE)
    assert f"connected, no queries, with eBPF | 45 MB | {memory[0]} MB" in BENCHMARKS
    sockets = row("`SELECT * FROM sockets`, 10,000 sockets in 400 processes, first / last row")[2]
    assert f"stock package | 150 / 400 ms | {sockets} (best" in BENCHMARKS
    processes = row("`SELECT * FROM processes`, 470 processes, first / last row")[2]
    first, last = re.findall(r"\d+", processes)
    assert f"the first row takes {first} ms" in BENCHMARKS
    assert f"stock package | 20 ms | {last} ms" in BENCHMARKS


def test_figures_of_others_are_those_that_the_benchmarks_quote() -> None:
    for name in ("auditd, raw", "LAUREL 0.1.3 with auditd", "Auditbeat 7.12"):
        quoted = {"LAUREL 0.1.3 with auditd": "LAUREL 0.1.3 and auditd", "Auditbeat 7.12": "auditbeat 7.12"}.get(
            name, name
        )
        assert f"| {quoted} | {' | '.join(row(name)[1:4])} |" in BENCHMARKS


def test_every_agent_has_a_section_that_says_where_it_is_better_and_when_to_choose_it() -> None:
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
    agents = [
        "osquery",
        "Velociraptor",
        "Tetragon",
        "Wazuh",
        "Elastic Defend, Elastic Agent, Auditbeat",
        "The C++ Zeek Agent",
    ]
    for name in agents:
        for part in ("**Better at:**", "**Different here:**", "**Choose "):
            assert part in sections[name], f"{name}: {part}"
    assert len(re.findall("^- ", sections["Where the Zeek Agent is weaker"], re.MULTILINE)) >= 5
