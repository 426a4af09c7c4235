"""The English that users read: documentation, generated reference, command output and the Zeek package's comments."""

from __future__ import annotations

import ast
import re
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
    r"never used again": "never reused",
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
}
"""Phrases of a translation, and what an engineer whose first language is English writes instead."""

_TELLTALE: Final = re.compile(rf"\b(?:{'|'.join(TELLTALE)})\b", re.IGNORECASE)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_plain_english(page: Path) -> None:
    assert found(_CODE.sub("`code`", page.read_text())) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT / "src" / "zeek_agent")))
def test_messages_and_descriptions_are_in_plain_english(module: Path) -> None:
    assert [phrase for text in strings(module.read_text()) for phrase in found(text)] == []


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
