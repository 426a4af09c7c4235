"""The logs of a collector behind two gateways, and of one to which the same agents are connected directly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from collector_program import collector
from twice_connected import changes, events, logs, missing, states, twice_connected

from zeek_agent.collector import pack_file

pytestmark = pytest.mark.timeout(1200)
DEFAULT_PACK = Path(pack_file.__file__).with_name("default.toml")
QUICK = re.compile(r"(?m)^schedule = (10|30|60|600)\.0")
"""The queries of tables that change."""


@pytest.mark.long
@pytest.mark.parametrize(("number", "schedule"), [(4, 2.0), pytest.param(50, 20.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize("is_broken", [False, True], ids=["whole", "a gateway killed"])
async def test_all_logs_are_those_of_direct_connections(
    tmp_path: Path, number: int, schedule: float, is_broken: bool
) -> None:
    """All tables of the default pack; while connections break, the collector may log rows again."""
    places = [tmp_path / name for name in ("direct", "behind")]
    for place in places:
        place.mkdir()
    pack = tmp_path / "pack.toml"
    pack.write_text(QUICK.sub(f"schedule = {schedule}", DEFAULT_PACK.read_text()))
    options = (f"--set=collector.pack={pack}", "--set=collector.rotate_interval=0")
    with collector(places[0], *options) as direct, collector(places[1], *options) as behind:
        urls = (f"ws://127.0.0.1:{direct.port}", f"ws://127.0.0.1:{behind.port}")
        async with twice_connected(tmp_path, urls, number, schedule=schedule) as fleet:
            await fleet.record(4, 0.3)
            if is_broken:
                fleet.break_one()
            await fleet.record(4, 0.3)
            await fleet.delivered()
        for one in (direct, behind):
            one.stop()
    there, here = (logs(place / "logs") for place in places)
    assert set(there) == set(here)
    assert len(there) >= 10
    assert not missing(there, here)
    assert not missing(here, there)
    assert states(here) == states(there)
    if not is_broken:
        assert events(here) == events(there)
        assert changes(here) == changes(there)
