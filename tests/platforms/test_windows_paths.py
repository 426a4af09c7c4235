"""Paths of Windows: the forms of patterns and access rules, and names that must not be opened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.platforms import windows_paths

NAMES = st.text(st.characters(exclude_characters='\\/:*?"<>|', exclude_categories=["C"]), min_size=1).filter(
    lambda name: name[-1] not in ". " and windows_paths.native(f"/C:/{name}") is not None
)


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "HERE", platforms.of("win32"))


@pytest.mark.parametrize(
    ("written", "inner"),
    [
        (r"C:\Windows\*.ini", "/C:/Windows/*.ini"),
        ("c:/Windows", "/c:/Windows"),
        ("C:", "/C:"),
        (r"logs\*.log", "logs/*.log"),
        (r"\\server\share\x", "//server/share/x"),
        ("C:relative", "C:relative"),
    ],
)
def test_a_pattern_gets_slashes_and_one_before_the_drive(written: str, inner: str) -> None:
    assert windows_paths.inner(written) == inner


@given(st.sampled_from("CDz"), st.lists(NAMES, max_size=4))
def test_what_is_shown_is_what_was_written_and_what_is_opened(drive: str, names: list[str]) -> None:
    written = f"{drive}:\\" + "\\".join(names)
    inner = windows_paths.inner(written)
    assert windows_paths.shown(inner) == written
    assert windows_paths.native(inner) == written


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/etc/passwd",
        "//server/share/file",
        "//?/C:/file",
        "/C:/file.txt:stream",
        "/C:/file.txt::$DATA",
        "/C:/file.txt.",
        "/C:/file.txt ",
        "/C:/directory./file",
        "/C:/NUL",
        "/C:/con.txt",
        "/C:/x/COM1",
        "/C:/x/lpt9.log",
    ],
)
def test_names_that_windows_opens_as_something_else_are_not_there(path: str) -> None:
    assert windows_paths.native(path) is None
    with pytest.raises(FileNotFoundError):
        platforms.of("win32").native_path(path)


@pytest.mark.usefixtures("on_windows")
@pytest.mark.parametrize("path", [r"C:\Users\Ada\Secrets\key", "c:/users/ada/SECRETS/a/b", "/C:/Users/x/secrets/y"])
def test_an_access_rule_holds_for_every_spelling_of_a_path(path: str) -> None:
    access = AccessPolicy(AccessSettings(paths_deny=(r"C:\Users\*\secrets\**",)))
    assert access.denies(path)
    assert not access.denies(r"C:\Users\Ada\Documents\key")


@pytest.mark.usefixtures("on_windows")
def test_the_agents_own_files_are_denied_in_any_spelling() -> None:
    access = AccessPolicy(AccessSettings(paths_deny=()), [r"C:\ProgramData\ZeekAgent\state"])
    assert access.denies("c:/programdata/zeekagent/STATE/events.db")
    assert not access.denies(r"C:\ProgramData\Other\events.db")
