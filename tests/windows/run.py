"""Runs the tests of shared code with Windows' Python under Wine, and prints what passed and what is left out.

    python tests/windows/run.py [--write] [--suite NAME] [FILE …]

Each suite runs in a process of its own, which is started again behind a test that ends it. `left_out.py` names the
tests that are not expected to pass, and why; any other failure is an error.
`--write` puts the figures into docs/platforms.md. Results are kept next to Wine's prefix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TextIO

import left_out
import wine

SUITES = {
    "SQL": ["tests/database"],
    "query": ["tests/queries", "tests/control", "tests/terminal/test_shell.py"],
    "collector": ["tests/collector"],
    "events": ["tests/events", "tests/results"],
    "platforms": ["tests/platforms", "tests/test_config.py", "tests/test_access.py", "tests/masking"],
    "protocol": ["tests/zeek", "tests/test_community_id.py"],
}
AGENT = "agent"
"""The suite that starts the agent under Wine, and runs with this Python."""
PROCESSES = 3
"""More than two cores, since Wine's programs mostly wait for its server."""
SUITE_SECONDS = 3_600.0
TEST_SECONDS = 180.0
SILENT_SECONDS = 400.0
"""Time after which a process that begins no test is ended: longer than pytest's own timeout."""
COMMAND = ["tests/windows/recorder.py", "-q", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]


class Outcome(NamedTuple):
    """One test, or a file, and how it ended: `passed`, `failed`, `skipped` or `not imported`."""

    test: str
    outcome: str
    reason: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]

    @property
    def left_out(self) -> str | None:
        return left_out.reason_for(self.test)

    @property
    def kind(self) -> str:
        """`passed`, `skipped`, `left out` or `failed`."""
        if self.outcome in {"passed", "skipped"}:
            return self.outcome
        return "left out" if self.left_out else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update docs/platforms.md")
    parser.add_argument("--suite", action="append", choices=[*SUITES, AGENT], help="only this suite (repeatable)")
    parser.add_argument("files", nargs="*", metavar="FILE", help="only these files")
    given = parser.parse_args()
    wine.set_up()
    chosen = given.suite or ([] if given.files else [*SUITES, AGENT])
    suites = {name: places for name, places in SUITES.items() if name in chosen}
    if given.files:
        suites["chosen"] = given.files
    with ThreadPoolExecutor(PROCESSES) as pool:
        outcomes = dict(zip(suites, pool.map(run_suite, suites.keys(), suites.values()), strict=True))
    if AGENT in chosen:
        outcomes[AGENT] = run_agent_tests()
    print(report(outcomes))
    if given.write and len(outcomes) == len(SUITES) + 1:
        write(table(outcomes))
    wine.end()
    return 1 if any(one.kind == "failed" for ones in outcomes.values() for one in ones) else 0


def run_suite(name: str, places: list[str]) -> list[Outcome]:
    """The outcomes of a suite's tests, also of one that ends or blocks its process."""
    record, output = wine.KEPT / f"{name}.jsonl", wine.KEPT / f"{name}.txt"
    record.write_text("")
    until = time.monotonic() + SUITE_SECONDS
    with output.open("w", buffering=1) as text:
        while not run_rest(places, record, text, until):
            if time.monotonic() >= until:
                note(record, name, f"did not end within {SUITE_SECONDS:.0f} s: see {output}")
                break
    outcomes = list(outcomes_in(record))
    print(name, dict(Counter(one.kind for one in outcomes)), flush=True)
    return outcomes


def run_rest(places: list[str], record: Path, output: TextIO, until: float) -> bool:
    """Run the tests that the record lacks; false if there may be more, because the process has ended in a test."""
    environment = {
        "ZEEK_AGENT_OUTCOMES": wine.windows_path(record),
        "ZEEK_AGENT_TEST_SECONDS": str(TEST_SECONDS),
    }

    def is_over() -> bool:
        return time.monotonic() >= until or time.time() > record.stat().st_mtime + SILENT_SECONDS

    record.touch()
    code = wine.run_into(output, [*COMMAND, *places], environment, is_over=is_over)
    interrupted = begun_last(record)
    if code in {0, 1, 5} and interrupted is None:
        return True
    if interrupted is None:
        note(record, record.stem, f"pytest has ended with {code}")
        return True
    note(record, interrupted, f"ended its process with {code}, or took too long")
    return False


def run_agent_tests() -> list[Outcome]:
    """The outcomes of the tests that start the agent under Wine."""
    record = wine.KEPT / f"{AGENT}.jsonl"
    record.write_text("")
    command = [sys.executable, *COMMAND, "-m", "soak or not soak", "tests/windows"]
    environment = {
        **os.environ,
        "ZEEK_AGENT_OUTCOMES": str(record),
        "ZEEK_AGENT_TEST_SECONDS": "1500",
    }
    subprocess.run(command, cwd=wine.ROOT, env=environment, check=False, timeout=SUITE_SECONDS)
    return list(outcomes_in(record))


def lines_in(record: Path) -> Iterator[Outcome]:
    for line in record.read_text(encoding="utf-8").splitlines():
        yield Outcome(**json.loads(line))


def outcomes_in(record: Path) -> Iterator[Outcome]:
    """The last outcome of each test: one may fail in its teardown after it has passed."""
    found = {one.test: one for one in lines_in(record) if one.outcome != "begun"}
    for one in sorted(found.values()):
        yield one._replace(test=one.test.replace("\\", "/"))


def begun_last(record: Path) -> str | None:
    """The test that has begun and has no outcome."""
    *_, last = [None, *lines_in(record)]
    return last.test if last is not None and last.outcome == "begun" else None


def note(record: Path, test: str, reason: str) -> None:
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"test": test, "outcome": "failed", "reason": reason}) + "\n")


def report(outcomes: dict[str, list[Outcome]]) -> str:
    """The table, and everything that a reader has to act on."""
    ones = [one for suite in outcomes.values() for one in suite]
    lines = [table(outcomes), ""]
    lines += [f"skipped: {one.test}: {one.reason}" for one in ones if one.kind == "skipped"]
    lines += [f"passes although it is left out: {name}" for name in passing_again(ones)]
    lines += [f"failed: {one.test}\n{one.reason}" for one in ones if one.kind == "failed"]
    return "\n".join(lines)


def passing_again(ones: list[Outcome]) -> Iterator[str]:
    """Tests that pass although their file is left out, and names that are left out of which nothing fails."""
    files = {one.file for one in ones}
    yield from (one.test for one in ones if one.outcome == "passed" and one.file in left_out.FILES)
    for name in left_out.TESTS:
        outcomes = {one.outcome for one in ones if name in {one.test, one.test.partition("[")[0]}}
        if "passed" in outcomes and "failed" not in outcomes:
            yield name
        elif not outcomes and name.partition("::")[0] in files:
            yield f"{name}: there is no such test"


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """A line for each suite, why tests are skipped, and what is left out."""
    lines = ["| Suite | Passed | Left out | Skipped | Failed |", "|---|---|---|---|---|"]
    for name, ones in outcomes.items():
        counts = Counter(one.kind for one in ones)
        figures = (f"{counts[kind]:,}" for kind in ("passed", "left out", "skipped", "failed"))
        lines.append(f"| {name} | {' | '.join(figures)} |")
    skipped = Counter(one.reason for ones in outcomes.values() for one in ones if one.kind == "skipped")
    reasons = ", ".join(f"{reason} ({number})" for reason, number in skipped.most_common())
    lines += ["", f"Skipped: {reasons or 'none'}."]
    named = sorted((left_out.FILES | left_out.TESTS).items())
    lines += ["", f"Left out, {len(left_out.FILES)} files and {len(left_out.TESTS)} tests:", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in named]
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the part of docs/platforms.md between the marks."""
    page = wine.ROOT / "docs" / "platforms.md"
    begin, end = "<!-- make test-windows -->\n", "<!-- end of make test-windows -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
