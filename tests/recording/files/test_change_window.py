"""Changes that are joined, and the names in directories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.recording.files.change_window import ChangeWindow
from zeek_agent.recording.files.directory_names import DirectoryNames
from zeek_agent.recording.files.watch_messages import Action, Change


def change(at: int, path: bytes = b"/a", pid: int = 1, action: Action = Action.WRITTEN) -> Change:
    return Change(action, pid, at, path)


def replace(names: DirectoryNames, directory: bytes, *present: bytes) -> None:
    with names.replacing(directory) as note:
        for name in present:
            note(name)


def test_changes_of_a_process_on_a_path_are_one_until_the_window_ends() -> None:
    window = ChangeWindow(100)
    for at in (0, 50, 99):
        window.add(change(at))
    window.add(change(60, pid=2))
    window.add(change(70, action=Action.ATTRIBUTES))
    assert window.oldest() == 0
    assert [(each.at, each.count) for each in window.due(100)] == [(0, 3)]
    window.add(change(110))
    assert [(each.pid, each.action, each.count) for each in window.due(1_000)] == [
        (2, Action.WRITTEN, 1),
        (1, Action.ATTRIBUTES, 1),
        (1, Action.WRITTEN, 1),
    ]
    assert window.oldest() is None


def test_more_changes_than_fit_end_their_window_early() -> None:
    window = ChangeWindow(1_000, changes_max=10)
    for number in range(15):
        window.add(change(number, b"/%d" % number))
    assert [each.path for each in window.due(15)] == [b"/0", b"/1", b"/2", b"/3", b"/4"]
    assert len(window) == 10


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.binary(min_size=1, max_size=3)), max_size=300))
def test_names_are_those_that_were_added_and_not_removed(steps: list[tuple[bool, int, bytes]]) -> None:
    names = DirectoryNames(changes_max=20)
    wanted: dict[bytes, set[bytes]] = {}
    for number in range(100):
        replace(names, b"%d" % number, b"first")
        wanted[b"%d" % number] = {b"first"}
    for adds, number, raw in steps:
        key, name = b"%d" % number, raw.replace(b"/", b"_")
        (names.add if adds else names.discard)(key, name)
        (wanted[key].add if adds else wanted[key].discard)(name)
    assert {key: names.get(key) for key in wanted} == wanted


def test_directories_beyond_the_limit_have_unknown_names() -> None:
    names = DirectoryNames(bytes_max=10)
    replace(names, b"1", b"abcdef")
    replace(names, b"2", b"ghijkl")
    assert (names.get(b"1"), names.get(b"2")) == ({b"abcdef"}, None)
    names.add(b"2", b"m")
    assert names.get(b"2") is None
    names.forget(b"1")
    replace(names, b"2", b"ghijkl")
    assert names.get(b"2") == {b"ghijkl"}


def test_a_directory_that_grows_beyond_the_limit_has_unknown_names() -> None:
    names = DirectoryNames(bytes_max=1_000, changes_max=10)
    replace(names, b"1")
    replace(names, b"2", b"a")
    for number in range(1_000):
        names.add(b"1", b"%d" % number)
    assert (names.get(b"1"), names.get(b"2")) == (None, {b"a"})


def test_directories_of_programs_leave_memory_for_others() -> None:
    names = DirectoryNames(bytes_max=100)
    for number in range(20):
        with names.replacing(b"p%d" % number, share=0.5) as note:
            note(b"x" * 9)
    replace(names, b"keys", b"authorized_keys")
    assert names.get(b"keys") == {b"authorized_keys"}
    assert names.get(b"p0") == {b"x" * 9}
    assert names.get(b"p19") is None


def test_long_paths_end_their_window_early() -> None:
    window = ChangeWindow(1_000, bytes_max=10_000)
    for number in range(10):
        window.add(change(0, b"/%d" % number + b"x" * 4_000))
    assert len(list(window.due(1))) == 8
    assert len(window) == 2


def test_what_a_comparison_found_is_not_joined_with_events_of_an_unknown_process() -> None:
    window = ChangeWindow(100)
    window.add(Change(Action.WRITTEN, 0, 0, b"/a"))
    window.add(Change(Action.WRITTEN, None, 0, b"/a", is_found=True))
    assert [each.is_found for each in window.due(200)] == [False, True]
