"""All combinations of mounts, links, tables and attackers, each with a link exchanged while files are opened.

200 tries each; 10,000 as a soak, which takes most of an hour.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import Any, Final

import pytest
from gate_attacks import LINKS, MOUNTS, ORDINARY, TABLES, USERS, Attack, World, senseless, shows, tells_of_the_secret
from mounting import SilentFuse, in_mount_namespace

from zeek_agent.host.files import gate
from zeek_agent.host.linux.mounts import MountTable

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")]

SECONDS: Final = 300
SOAK_SECONDS: Final = 600


def attacks() -> list[object]:
    """The cells of the matrix; those that make no sense are skipped, with the reason."""
    cells = []
    for mounted, link, table, user in product(MOUNTS, LINKS, TABLES, USERS):
        why = senseless(mounted, link)
        marks = [pytest.mark.skip(reason=why)] if why else []
        cells.append(pytest.param(mounted, link, table, user, marks=marks, id=f"{mounted}, {link}, {table}, {user}"))
    return cells


@pytest.mark.timeout(2 * SOAK_SECONDS)
@pytest.mark.parametrize(
    ("tries", "seconds"),
    [
        pytest.param(200, SECONDS, id="200 tries", marks=pytest.mark.soak),
        pytest.param(10_000, SOAK_SECONDS, id="10,000 tries", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize(("mounted", "link", "table", "user"), attacks())
def test_no_secret_is_revealed_and_every_ordinary_file_is_read(
    tmp_path: Path, mounted: str, link: str, table: str, user: str, tries: int, seconds: int
) -> None:
    if mounted == "fuse" and not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    fuse = SilentFuse()
    attack = Attack(mounted, link, table, user, tmp_path, fuse, tries)
    report = in_mount_namespace(attack.run, fuse=fuse, seconds=seconds)
    assert report.leaks == []
    assert report.incomplete == []
    assert fuse.requests == []
    assert report.tries >= tries
    assert report.exchanged > 0
    if table != "files_list":  # which has attributes of what may be reached, and of links that are not followed
        assert report.left_out > 0


class Steps:
    """Attacks right before a given one of the system calls that the path gate makes."""

    CALLS: Final = (
        (os, "open"),
        (os, "readlink"),
        (os, "scandir"),
        (gate, "open_on_mount"),
        (gate, "status_on_mount"),
        (gate, "status_of"),
        (gate, "status_at"),
        (gate, "entry_types"),
        (MountTable, "current"),
    )

    def __init__(self, attack: Callable[[], object]) -> None:
        self._attack = attack
        self._strike_at = 0
        self.taken = 0

    @contextmanager
    def strike_before(self, number: int) -> Iterator[None]:
        """Within it the attack happens once, before the call with this number."""
        self._strike_at, self.taken = number, 0
        with pytest.MonkeyPatch.context() as patches:
            for module, name in self.CALLS:
                patches.setattr(module, name, self._stepped(getattr(module, name)))
            yield

    def _stepped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            self.taken += 1
            if self.taken == self._strike_at:
                self._attack()
            return call(*arguments, **named)

        return stepped


@pytest.mark.long(kept=4)
@pytest.mark.timeout(2 * SOAK_SECONDS)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("strike", World.STRIKES)
def test_no_secret_is_revealed_whatever_changes_between_two_steps(tmp_path: Path, strike: str, table: str) -> None:
    """The same without chance: the change comes before the first system call, before the second, and so on."""
    if strike.startswith("fuse") and not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    fuse = SilentFuse()
    world = World(tmp_path, fuse)

    def scene() -> tuple[list[int], list[str], list[str]]:
        world.make()
        taken, leaks, incomplete = [], [], []
        steps = Steps(lambda: world.strike(strike))
        for way in World.WAYS:
            for number in count(1):
                with steps.strike_before(number):
                    rows = world.ask(table, way)
                world.reset()
                leaks += [f"{way}, before {number}: {row}" for row in rows if tells_of_the_secret(row)]
                if way == World.WAYS[0]:
                    missed = [name for name, content in ORDINARY.items() if not shows(rows, table, name, content)]
                    incomplete += [f"before {number}: {name}" for name in missed]
                if steps.taken < number:
                    taken.append(number)
                    break
        return taken, leaks, incomplete

    taken, leaks, incomplete = in_mount_namespace(scene, fuse=fuse, seconds=SECONDS)
    assert leaks == []
    assert incomplete == []
    assert fuse.requests == []
    assert len(taken) == len(World.WAYS)
    assert min(taken) > 10
