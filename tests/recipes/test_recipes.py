"""The recipes of CONTRIBUTING.md work as they are printed there, and touch no more files than they say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from follow_recipes import (
    LINT,
    PAGE,
    Recipe,
    RecipeError,
    Step,
    check,
    copy_tree,
    follow,
    generate,
    main,
    patched,
    recipes,
    touched,
)
from places import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or shutil.which("make") is None or not (ROOT / ".git").exists(),
    reason="needs git, make and a clone",
)

RECIPES = recipes(PAGE.read_text())
LIMITS = {"A snapshot table": 3, "An event table with a new source": 6, "A Zeek log": 1}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy_tree(tmp_path)
    return tmp_path


def test_the_page_has_these_recipes_and_limits() -> None:
    assert {recipe.title: recipe.limit for recipe in RECIPES} == LIMITS
    for recipe in RECIPES:
        assert recipe.commands, f"{recipe.title} shows no command that uses what it adds"


@pytest.mark.long
@pytest.mark.parametrize("lint", ["help", pytest.param(LINT, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)  # linters of the whole tree, on a machine that may be busy
def test_the_recipes_work_and_touch_few_files(tree: Path, lint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("follow_recipes.LINT", lint)
    for recipe in RECIPES:
        statistics = follow(recipe, tree)
        assert " changed, " in statistics
        assert "tests/" not in statistics
    check(RECIPES, tree)


@pytest.mark.long
@pytest.mark.zeek
@pytest.mark.timeout(600)  # a few runs of Zeek, on a machine that may be busy
def test_zeek_writes_the_log_of_the_recipe_for_one(tree: Path) -> None:
    (recipe,) = [recipe for recipe in RECIPES if recipe.title == "A Zeek log"]
    follow(recipe, tree)
    generate([recipe], tree)
    baseline = tree / "zeek/testing/Baseline/tables.logs/zeek-agent-interfaces.log"
    assert "\thost\tchange\tname\tkind\tmac\taddresses\tmtu\tup\tpromiscuous\n" in baseline.read_text()


def test_each_file_that_counts_is_counted(tree: Path) -> None:
    """Changed, new, renamed and removed ones; tests do not count."""
    (tree / "README.md").write_text("changed\n")
    (tree / "src/zeek_agent/new.py").write_text("")
    (tree / "tests/test_new.py").write_text("")
    (tree / "zeek/testing/new.zeek").write_text("")
    (tree / "NOTICE").unlink()
    files, statistics = touched(tree)
    assert files == ["NOTICE", "README.md", "src/zeek_agent/new.py"]
    assert " 3 files changed, " in statistics


@pytest.mark.long
def test_a_recipe_over_its_limit_fails(tree: Path) -> None:
    recipe = replace(RECIPES[0], limit=2)
    with pytest.raises(RecipeError, match=r"3 files, at most 2 are allowed:\n(.*\n)+.* 3 files changed"):
        follow(recipe, tree)


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Step("README.md", "new\n", False), "README.md is there already"),
        (Step("src/zeek_agent/none.py", " a\n+b\n", True), r"none\.py is missing"),
        (Step("README.md", " no such line\n+b\n", True), "README.md: these lines are there 0 times"),
    ],
)
def test_a_recipe_that_the_tree_has_outgrown_fails_with_the_reason(step: Step, reason: str, tree: Path) -> None:
    with pytest.raises(RecipeError, match=reason):
        follow(Recipe("broken", 1, (step,), ()), tree)


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("src/zeek_agent/bad.py", "import os\n", r"(?s)make .* lint failed:.*F401.*bad\.py"),
        pytest.param(
            *("src/zeek_agent/bad.py", 'TEXT: int = ""\n', r"(?s)make .* lint failed:.*bad\.py.*Incompatible types"),
            marks=pytest.mark.soak,
        ),
        ("tests/test_bad.py", "def test_bad() -> None:\n    raise OSError\n", "(?s)pytest .*failed:.*test_bad"),
    ],
)
def test_failures_of_the_checks_are_shown(
    path: str, text: str, reason: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.startswith("tests/"):
        monkeypatch.setattr("follow_recipes.LINT", "help")
    monkeypatch.setattr("follow_recipes.TESTS", ())
    recipe = Recipe("broken", 1, (Step(path, text, False),), ())
    follow(recipe, tree)
    with pytest.raises(RecipeError, match=reason):
        check([recipe], tree)


@pytest.mark.long
def test_a_command_that_fails_is_shown_with_its_error(tree: Path) -> None:
    recipe = Recipe("broken", 0, (), ('zeek-agent query "SELECT 1 FROM nowhere"',))
    with pytest.raises(RecipeError, match=r"(?s)SELECT 1 FROM nowhere.*failed:.*nowhere"):
        check([recipe], tree)


def test_the_program_reports_failures_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n## Recipes\n\n### Nothing (at most 0 files)\n\n**`one.txt`**\n\n```text\none\n```\n")
    monkeypatch.setattr("follow_recipes.PAGE", page)
    assert main([]) == 1
    assert "FAILED: Nothing: 1 files, at most 0 are allowed" in capsys.readouterr().out
    assert main(["other"]) == 2


def test_lines_go_where_the_context_is() -> None:
    assert patched("a\nb\nc\n", " b\n+new\n") == "a\nb\nnew\nc\n"
    assert patched("a\nb\nc\n", "+new\n a\n-b\n") == "new\na\nc\n"
    assert patched("a\n\nc\n", " a\n\n+new\n") == "a\n\nnew\nc\n"
    for text in ("a b\n", "b c\n", "b\nb\n"):
        with pytest.raises(RecipeError, match="instead of once"):
            patched(text, " b\n+new\n")
