"""Follows the recipes of CONTRIBUTING.md in a copy of the tree, and counts the files that each touches.

    python tests/recipes/follow_recipes.py [WORD…]

follows those whose titles contain the words, else all, and runs the linters, tests and the recipes' commands on the
result. The exit code is 1 when a recipe does not work or touches more files than its heading allows; tests and
generated files do not count.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
GENERATE = "docs"
LINT = "lint"
"""Targets of make."""
TABLE_TESTS = "tests/tables/test_table_contract.py"
"""Run for the recipes' tables only: those of others depend on what else happens on the machine."""
TESTS = (
    "tests/recording/test_registry.py",
    "tests/events/test_events_migrations.py::test_the_present_schema_has_its_dump",
    "tests/collector/test_pack.py",
    "tests/test_architecture.py",
    "tests/test_docs.py",
)
"""Those that cover every source, stored table, log, module and page."""

_HEADING = re.compile(r"### (?P<title>.+) \(at most (?P<limit>\d+) files?\)")
_BLOCK = re.compile(
    r"(?:^\*\*`(?P<path>[^`]+)`\*\*\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class RecipeError(Exception):
    """A recipe that cannot be followed, does not work or touches too much."""


@dataclass(frozen=True)
class Step:
    """A new file, or lines to add to one that is there (`is_diff`)."""

    path: str
    text: str
    is_diff: bool


@dataclass(frozen=True)
class Recipe:
    title: str
    limit: int
    steps: tuple[Step, ...]
    commands: tuple[str, ...]
    """Lines for a shell, the agent and its Python on the path."""


def recipes(page: str) -> list[Recipe]:
    """The recipes that the page contains."""
    _, *parts = re.split(r"^(?=### )", page.partition("\n## Recipes\n")[2], flags=re.MULTILINE)
    return [_recipe(part) for part in parts]


def _recipe(part: str) -> Recipe:
    heading, _, body = part.partition("\n")
    named = _HEADING.fullmatch(heading)
    if named is None:
        raise RecipeError(f"{heading!r}: a recipe's heading ends with (at most N files)")
    steps: list[Step] = []
    commands: list[str] = []
    path = ""
    for block in _BLOCK.finditer(body):
        language, text = block["language"], block["text"]
        if not language:
            commands += text.splitlines()
            continue
        path = block["path"] or path
        steps.append(Step(path, text, language == "diff"))
    return Recipe(named["title"], int(named["limit"]), tuple(steps), tuple(commands))


def patched(text: str, diff: str) -> str:
    """The text with the diff's lines in place. Its context must be there once, without line numbers to go by."""
    marked = [(line[:1] or " ", line[1:]) for line in diff.splitlines()]
    before = [line for mark, line in marked if mark != "+"]
    after = [line for mark, line in marked if mark != "-"]
    lines = text.splitlines()
    places = [place for place in range(len(lines)) if lines[place : place + len(before)] == before]
    if len(places) != 1:
        raise RecipeError(f"these lines are there {len(places)} times instead of once:\n" + "\n".join(before))
    lines[places[0] : places[0] + len(before)] = after
    return "\n".join(lines) + "\n"


def apply(recipe: Recipe, tree: Path) -> None:
    """Make the recipe's changes. Raises RecipeError when the tree is not what the recipe expects."""
    for step in recipe.steps:
        file = tree / step.path
        if step.is_diff != file.exists():
            raise RecipeError(f"{recipe.title}: {step.path} is {'missing' if step.is_diff else 'there already'}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_text(patched(file.read_text(), step.text) if step.is_diff else step.text)
        except RecipeError as error:
            raise RecipeError(f"{recipe.title}: {step.path}: {error}") from None


def copy_tree(to: Path) -> None:
    """Commit a copy of the tree as it is, with its changes that are not committed yet, to a new repository."""
    listed = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    _git(to, "init", "--quiet")
    _git(to, "add", "--all")
    _git(to, "commit", "--quiet", "--message=before")


def touched(tree: Path) -> tuple[list[str], str]:
    """The files that differ from the last commit without those of tests, and `git diff --stat` of them."""
    _git(tree, "add", "--all")
    what = ("--", ".", ":(exclude)tests", ":(exclude)zeek/testing")
    names = _git(tree, "diff", "--cached", "--name-only", *what).splitlines()
    return names, _git(tree, "diff", "--cached", "--stat", *what)


def follow(recipe: Recipe, tree: Path) -> str:
    """Apply the recipe to the copy in `tree` and commit it. Returns `git diff --stat` of what it touches by hand.

    Raises RecipeError when these are more files than the recipe allows.
    """
    apply(recipe, tree)
    files, statistics = touched(tree)
    if len(files) > recipe.limit:
        raise RecipeError(f"{recipe.title}: {len(files)} files, at most {recipe.limit} are allowed:\n{statistics}")
    _git(tree, "commit", "--quiet", "--allow-empty", f"--message={recipe.title}")
    return statistics


def generate(followed: Sequence[Recipe], tree: Path) -> None:
    """Bring generated files up to date and run the recipes' commands, those that need Zeek where there is one.

    Raises RecipeError with what failed.
    """
    commands = [command for recipe in followed for command in recipe.commands]
    if shutil.which("zeek") is None:
        commands = [command for command in commands if "btest " not in command]
    _run(tree, _make(GENERATE), *(["sh", "-c", command] for command in commands))


def check(followed: Sequence[Recipe], tree: Path) -> None:
    """Generate, then run linters and tests. Raises RecipeError with what failed."""
    generate(followed, tree)
    paths = {step.path for recipe in followed for step in recipe.steps if step.path.endswith(".py")}
    tests = [*TESTS, *sorted(path for path in paths if path.startswith("tests/"))]
    tables = [Path(path).stem for path in paths if path.startswith("src/zeek_agent/tables/")]
    selected = " or ".join([*(Path(path.partition("::")[0]).stem for path in tests), *tables])
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selected, TABLE_TESTS, *tests]
    _run(tree, _make(LINT), pytest)


def _make(target: str) -> list[str]:
    """Make the target by this interpreter, without setting up another one."""
    return ["make", "--silent", "--old-file=setup", f"BIN={Path(sys.executable).parent}", target]


def _run(tree: Path, *commands: list[str]) -> None:
    """Run commands on the code of the tree, with a state directory of their own."""
    with tempfile.TemporaryDirectory() as state:
        environment = {
            **_environment(),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(tree / "src"),
            "ZEEK_AGENT_STATE_DIR": state,
        }
        for command in commands:
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RecipeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def _git(tree: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=recipes", "-c", "user.email=recipes@localhost", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=tree, env=_environment(), capture_output=True, text=True, check=True).stdout


def _environment() -> dict[str, str]:
    """The environment without what git sets for its hooks and make for what it calls: both begin with the directory."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}


def chosen(words: list[str]) -> Iterator[Recipe]:
    """The recipes whose titles contain any of the words; all without words."""
    for recipe in recipes(PAGE.read_text()):
        if not words or any(word.lower() in recipe.title.lower() for word in words):
            yield recipe


def main(words: list[str]) -> int:
    found = list(chosen(words))
    if not found:
        print(f"no recipe of {PAGE.name} is called that")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        copy_tree(tree)
        try:
            for recipe in found:
                print(f"{recipe.title} (at most {recipe.limit}):\n{follow(recipe, tree)}")
            check(found, tree)
        except RecipeError as error:
            print(f"FAILED: {error}")
            return 1
    print("linters, tests and commands pass with them")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
