"""Runs the tests of shared code with Windows' Python under Wine, and prints what passed and what is left out.

    python tests/windows/run.py [--write] [FILE …]

Each suite runs in a process of its own. `left_out.py` names the tests and files that are not run, and why; any other
failure is an error.
`--write` puts the figures into docs/platforms.md. Results are kept next to Wine's prefix.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import wine
from left_out import FILES, TESTS

SUITES = {
    "SQL": ["tests/database"],
    "protocol": ["tests/zeek", "tests/test_community_id.py"],
    "database": ["tests/events", "tests/results"],
    "query": ["tests/queries", "tests/control", "tests/terminal/test_shell.py"],
    "collector": ["tests/collector"],
    "platform": ["tests/platforms", "tests/test_config.py", "tests/test_access.py", "tests/masking"],
}
PROCESSES = 2
SECONDS = 3_000.0
"""Time for a suite. A test that takes longer than pytest's timeout ends its process."""
_NOT_IMPORTED = re.compile(r"^ERROR (tests/\S+?\.py)(?: - .*)?$", re.MULTILINE)
_RESULT = re.compile(r"^(tests/\S+?\.py)::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


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
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = pool.map(run_suite, suites.keys(), suites.values())
        outcomes = dict(zip(suites, found, strict=True))
    print(table(outcomes))
    wrong = [one for one in itertools.chain.from_iterable(outcomes.values()) if one.result in {"failed", "error"}]
    for one in sorted(wrong):
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


def run_suite(name: str, places: list[str]) -> list[Outcome]:
    """The outcomes of a suite's tests that are not left out, also of one that crashes."""
    files = [file for file in sorted(files_of(places)) if file not in FILES]
    kept = wine.KEPT / f"{name}.txt"
    options = ["-v", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    options += ["-o", "console_output_style=classic"]
    options += [f"--deselect={test}" for test in TESTS if test.partition("::")[0] in files]
    with kept.open("w") as output:
        code = wine.run_into(output, ["-m", "pytest", *options, *files], SECONDS)
    outcomes = list(outcomes_in(kept.read_text(errors="replace")))
    if code not in {0, 1}:
        outcomes.append(Outcome(name, f"the process has ended with {code}: see {kept}", "error"))
    print(name, dict(Counter(one.result for one in outcomes)), flush=True)
    return outcomes


def outcomes_in(output: str) -> Iterator[Outcome]:
    """The results in what `pytest -v` prints."""
    for file, name, result in _RESULT.findall(output):
        yield Outcome(file, name, result.lower())
    for file in dict.fromkeys(_NOT_IMPORTED.findall(output)):
        yield Outcome(file, "the file cannot be imported", "error")


def files_of(places: list[str]) -> set[str]:
    found = set()
    for place in places:
        path = wine.ROOT / place
        files = [path] if path.is_file() else path.rglob("test_*.py")
        found |= {file.relative_to(wine.ROOT).as_posix() for file in files}
    return found


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
