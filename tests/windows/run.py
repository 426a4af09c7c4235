"""Runs the tests of shared code with Windows' Python under Wine, and prints what passed and what is left out.

    python tests/windows/run.py [--write] [FILE …]

Each file runs in a process of its own, so that a crash or a test that hangs costs the others nothing. `left_out.py`
names the tests and files that are not run, and why; any other failure is an error.
`--write` puts the figures into docs/platforms.md. Results are kept next to Wine's prefix.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import wine
from left_out import FILES, TESTS

SUITES = {
    "protocol": ["tests/zeek", "tests/test_community_id.py"],
    "database": ["tests/events", "tests/results"],
    "SQL": ["tests/database"],
    "query": ["tests/queries", "tests/control", "tests/terminal/test_shell.py"],
    "collector": ["tests/collector"],
    "platform": ["tests/platforms", "tests/test_config.py", "tests/test_access.py", "tests/masking"],
}
PROCESSES = 3
SECONDS = 600.0
"""Time for a file. A test that takes longer than pytest's timeout ends its process."""


class Outcome(NamedTuple):
    """One test: its file, its name, and `passed`, `failed`, `skipped` or `error`."""

    file: str
    name: str
    result: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update docs/platforms.md")
    parser.add_argument("files", nargs="*", metavar="FILE", help="only these files")
    given = parser.parse_args()
    wine.set_up()
    suites = {"chosen": given.files} if given.files else SUITES
    outcomes = {name: run_suite(places) for name, places in suites.items()}
    print(table(outcomes))
    wrong = [one for one in itertools.chain.from_iterable(outcomes.values()) if one.result in {"failed", "error"}]
    for one in wrong:
        print(f"{one.result}: {one.file}::{one.name}")
    if given.write and not given.files:
        write(outcomes)
    agent = 0 if given.files else run_agent_tests()
    wine.end()
    return 1 if wrong or agent else 0


def run_agent_tests() -> int:
    """Run the tests that start the agent under Wine; they run with this Python."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/windows"], cwd=wine.ROOT, check=False
    ).returncode


def run_suite(places: list[str]) -> list[Outcome]:
    """The outcomes of a suite's tests that are not left out."""
    files = [file for file in sorted(files_of(places)) if file not in FILES]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return [one for ones in pool.map(run_file, files) for one in ones]


def run_file(file: str) -> list[Outcome]:
    kept = wine.KEPT / "results" / file.replace("/", "_")
    kept.parent.mkdir(exist_ok=True)
    report = kept.with_suffix(".xml")
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={wine.windows_path(report)}"]
    options += [f"--deselect={test}" for test in TESTS if test.startswith(f"{file}::")]
    try:
        done = wine.run_python(["-m", "pytest", *options, file], seconds=SECONDS)
    except subprocess.TimeoutExpired:
        return [Outcome(file, f"did not end within {SECONDS:g} s", "error")]
    kept.with_suffix(".txt").write_text(done.stdout + done.stderr)
    if not report.exists():
        return [Outcome(file, f"the process has crashed: see {kept.with_suffix('.txt')}", "error")]
    outcomes = [outcome(file, case) for case in ET.parse(report).getroot().iter("testcase")]
    print(file, dict(Counter(one.result for one in outcomes)), flush=True)
    return outcomes


def files_of(places: list[str]) -> set[str]:
    found = set()
    for place in places:
        path = wine.ROOT / place
        files = [path] if path.is_file() else path.rglob("test_*.py")
        found |= {file.relative_to(wine.ROOT).as_posix() for file in files}
    return found


def outcome(file: str, case: ET.Element) -> Outcome:
    kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
    result = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
    return Outcome(file, case.get("name", ""), result)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """A line for each suite, and what is left out."""
    lines = ["| Suite | Files | Passed | Skipped | Failed |", "|---|---|---|---|---|"]
    for name, ones in outcomes.items():
        counts = Counter(one.result for one in ones)
        failed = counts["failed"] + counts["error"]
        files = len({one.file for one in ones})
        lines.append(f"| {name} | {files} | {counts['passed']} | {counts['skipped']} | {failed} |")
    lines += ["", f"Left out, {len(FILES)} files and {len(TESTS)} tests:", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in sorted((FILES | TESTS).items())]
    return "\n".join(lines)


def write(outcomes: dict[str, list[Outcome]]) -> None:
    """Replace the part of docs/platforms.md between the marks."""
    page = wine.ROOT / "docs" / "platforms.md"
    begin, end = "<!-- make test-windows -->\n", "<!-- end of make test-windows -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{table(outcomes)}\n\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
