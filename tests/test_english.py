"""The English of documentation, generated reference, command output, the Zeek package's comments, and the code."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from places import ROOT

TELLTALE: Final = {
    r"who is who": "roles",
    r"how (?:it|they) fares?": "status",
    r"what a person sees": "terminal output",
    r"where (?:facts|events) come from": "event sources",
    r"(?:is|are) told": "is notified",
    r"tells? of": "reports",
    r"(?:is|are|was|were) at work": "is active",
    r"stands? (?:by|in for)": "is a fallback, replaces",
    r"(?:gives?|gave|given) up": "abandons, is lost",
    r"(?:goes|go|going) on without": "continues without",
    r"without a word": "without a close frame",
    r"(?:is|are|was) no [a-z]+ of": "is not a",
    r"what is no": "anything else",
    r"that (?:is|are) no(?! longer)": "that is not a",
    r"(?:one|a) (?:row|line|batch|module|event|message) an? [a-z]+": "one row per …",
    r"anew": "again",
    r"farewell": "shutdown message",
    r"wrong use": "usage error",
    r"least level": "minimum level",
    r"mend": "fix",
    r"makes? no sense": "is invalid",
    r"under way": "in flight, in progress",
    r"beside (?:the|it|its|a|an|that|those)": "next to, alongside, in addition to",
    r"nobody listens": "nothing is listening",
    r"on the way to it": "on the path",
    r"never used again": "never reused",
    r"come(?:s)? and go(?:es)?": "is added and removed, opens and closes",
    r"lets? go of": "closes, releases",
    r"(?:speaks?|spoke) (?:to|of)": "connects to, names",
    r"talk(?:s|ed)? to": "connects to",
    r"takes? (?:it|them|that) for": "treats as",
    r"(?:is|are) taken for": "is treated as",
    r"as it (?:is|was) there": "as it existed",
    r"is asked (?:for|once)": "is queried, requested",
    r"in the place of": "in place of, instead of",
    r"nobody else's?": "no other user",
    r"goes? by its": "uses its",
    r"what it tells": "its contents",
    r"makes? up of": "consists of",
}
"""Phrases of a translation, and what an engineer whose first language is English writes instead."""

_TELLTALE: Final = re.compile(rf"\b(?:{'|'.join(TELLTALE)})\b", re.IGNORECASE)
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_CODE: Final = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
PAGES: Final = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CHANGELOG.md",
            "SECURITY.md",
            "CONTRIBUTING.md",
            "Makefile",
            "packaging/zeek-agent.toml",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES: Final = sorted((ROOT / "src" / "zeek_agent").rglob("*.py"))
TESTS: Final = sorted((ROOT / "tests").rglob("test_*.py"))
SCRIPTS: Final = sorted((ROOT / "zeek" / "scripts").rglob("*.zeek"))


def found(text: str) -> list[str]:
    """The telltale phrases of a text, whatever its line breaks."""
    return [re.sub(r"\s+", " ", match[0]) for match in _TELLTALE.finditer(re.sub(r"\s+", " ", text))]


def strings(code: str) -> Iterator[str]:
    """The string literals of a module: messages, help texts and descriptions, but no docstrings."""
    tree = ast.parse(code)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value


def prose(code: str) -> Iterator[str]:
    """The docstrings and comments of a module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_plain_english(page: Path) -> None:
    assert found(_CODE.sub("`code`", page.read_text())) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT / "src" / "zeek_agent")))
def test_messages_and_descriptions_are_in_plain_english(module: Path) -> None:
    assert [phrase for text in strings(module.read_text()) for phrase in found(text)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT / "src" / "zeek_agent")))
def test_docstrings_and_comments_are_in_plain_english(module: Path) -> None:
    assert [phrase for text in prose(module.read_text()) for phrase in found(text)] == []


@pytest.mark.parametrize("module", TESTS, ids=lambda module: str(module.relative_to(ROOT / "tests")))
def test_test_names_are_in_plain_english(module: Path) -> None:
    names = (node.name for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, _FUNCTIONS))
    assert [name for name in names if name.startswith("test_") and found(name.replace("_", " "))] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_comments_of_the_zeek_package_are_in_plain_english(script: Path) -> None:
    comments = " ".join(re.findall(r"##[!<]? ?(.*)", script.read_text()))
    assert found(comments) == []


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("The backend that is at\n  work", ["is at work"]),
        ("One row a process.", ["One row a process"]),
        ("What is no address is refused", ["What is no"]),
        ("Amendments beside themselves, and a file that is no longer there", []),
        ("one row per process; a row has a name", []),
    ],
)
def test_phrases_are_found_across_lines_and_as_whole_words(text: str, phrases: list[str]) -> None:
    assert found(text) == phrases


def test_messages_are_found_and_docstrings_are_not() -> None:
    code = 'def f(x):\n    """A docstring."""\n    raise ValueError(f"a {x} message", "help")\n'
    assert list(strings(code)) == ["help", "a ", " message"]


def test_docstrings_and_comments_are_found_and_messages_are_not() -> None:
    code = 'def f(x):\n    """A docstring."""\n    raise ValueError("help")  # a comment\n'
    assert list(prose(code)) == ["A docstring.", "# a comment"]
