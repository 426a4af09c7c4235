"""Each setting, changed while an agent runs: it is in force afterwards, or listed as one that needs a restart."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from own_table_files import declared, roots_directory

import zeek_agent
from zeek_agent import identity, logbook, paths
from zeek_agent.agent import Agent
from zeek_agent.config import declarations
from zeek_agent.config.declarations import Config, settings
from zeek_agent.containment import needs
from zeek_agent.containment.protections import LockdownError
from zeek_agent.reload import Loaded

pytestmark = pytest.mark.root

OWN_TABLE: Final = """
[tables.name_services]
summary = "where this host looks up names"
files = "/etc/nsswitch.conf"
separator = ":"
columns = [{ name = "kind", type = "text", summary = "`hosts`, …" }]
"""
PACK: Final = Path(zeek_agent.__file__).parent / "collector/default.toml"
OF_OTHER_PROGRAMS: Final = ("gateway.",)
NEEDS_RESTART: Final = ("state_dir", "agent.", "sources.", "osquery.", "log.file", "log.entries", "control.")
OTHER: Final[Mapping[str, object]] = {
    "zeek.destinations": ("ws://127.0.0.1:1/v1/messages/json",),
    "bus.clusters": ("main",),
    "zeek.window_bytes_max": 8_000_000,
    "zeek.reconnect_max": 61.0,
    "access.tables_deny": ("users",),
    "access.privileges_allow": ("users",),
    "access.redact": ("hunter[0-9]",),
    "collector.listen": "127.0.0.1:1",
    "collector.retention_bytes": 1 << 30,
    "metrics.group": "root",
}
"""Other valid values than the default, of settings for which not everything is valid."""


def other(name: str, directory: Path) -> object:
    """A value that differs from the default."""
    setting = settings()[name]
    if name in OTHER:
        return OTHER[name]
    if name == "collector.pack":
        shutil.copy(PACK, directory / "pack.toml")
        return str(directory / "pack.toml")
    if name == "collector.packs":
        (directory / "further.conf").write_text(
            '{"schedule": {"up": {"query": "SELECT * FROM uptime", "interval": 60}}}'
        )
        return (str(directory / "further.conf"),)
    if name == "metrics.listen":
        return f"unix:{directory / 'metrics.sock'}"
    default, kind = setting.default, setting.type
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 1
    choices = get_args(kind)
    if isinstance(default, str) and choices:
        return next(one for one in choices if one != default)
    if isinstance(default, tuple):
        return (7,) if name == "sources.ignore_uids" else (f"{directory}/**",)
    return 1.5 if name == "collector.schedule" else str(directory / name)


class Reloading:
    """An agent without sources, and the settings that its next reload finds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base: dict[str, object] = {name: setting.default for name, setting in settings().items()}
        self.base |= dict.fromkeys(("sources.processes", "sources.sockets"), "off")
        self.base |= dict.fromkeys(("sources.translations", "sources.system_logs", "osquery.socket"), "off")
        self.base |= {"state_dir": str(directory / "state"), "collector.logs": str(directory / "logs")}
        self.values = dict(self.base)
        config = declarations.with_values(self.base)
        places = paths.locate(config)
        places.state.mkdir()
        who = identity.establish(places.identity, None)
        self.agent: Any = Agent(config, {}, places, who, logbook.set_up(config.log), load=self._load)

    def _load(self) -> Loaded:
        return Loaded(declarations.with_values(self.values), dict.fromkeys(self.values, "a test"))

    async def reload(self, **values: object) -> str:
        """Reload the base with other values, by dotted name."""
        self.values = {**self.base, **values}
        return str(await self.agent.reload())

    def in_force(self, name: str) -> set[object]:
        """The values of the setting that the agent's parts have."""
        section = name.partition(".")[0]
        parts = [declarations.get(Config(**{section: one}), name) for one in self._sections(section)]
        found = {declarations.get(self.agent._config, name), *parts}
        match name:
            case "zeek.destinations":
                found.add(tuple(one.destination for one in self.agent.connections() if one.destination != "embedded"))
            case "limits.state_bytes":
                found |= {self.agent.store._state_bytes, self.agent.results._bytes_max}
            case "metrics.listen" if self.agent._metrics is not None:
                found.add(f"unix:{self.agent._metrics._place}")
            case "metrics.group" if self.agent._metrics is not None:
                found.add(self.agent._metrics._group)
            case "log.level":
                found.add(logging.getLevelName(logging.getLogger().level).lower())
        return found

    def _sections(self, section: str) -> list[object]:
        """The settings of a section that parts of the agent have been given."""
        agent = self.agent
        workers = msgspec.msgpack.Decoder(Config).decode(agent.database.pool._setup.config)
        given = {
            "zeek": [one._settings for one in agent._connections],
            "limits": [agent.database.limits, agent.database.pool._limits, workers.limits],
            "access": [workers.access],
            "events": [agent.store._settings],
            "collector": [agent._collector._settings] if agent._collector else [],
        }
        return given.get(section, [])


@pytest.fixture
async def reloading(tmp_path: Path) -> AsyncIterator[Reloading]:
    made = Reloading(tmp_path)
    level = logging.getLogger().level
    async with made.agent:
        yield made
    logging.getLogger().setLevel(level)


@pytest.fixture
def own_tables() -> Iterator[str]:
    with roots_directory() as place:
        yield declared(place, OWN_TABLE)


@pytest.mark.long
async def test_every_setting_is_in_force_or_needs_a_restart(reloading: Reloading, own_tables: str) -> None:
    sections: dict[str, list[str]] = {}
    for name in settings():
        if not name.startswith(OF_OTHER_PROGRAMS):
            sections.setdefault(name.rpartition(".")[0], []).append(name)
    for names in sections.values():
        await reloading.reload()
        changed = {name: other(name, reloading.directory) for name in names}
        if "tables.files" in changed:
            changed["tables.files"] = (own_tables,)
        told = await reloading.reload(**changed)
        applied, _, kept = told.partition("; needs a restart: ")
        restarting = {name for name in names if name.startswith(NEEDS_RESTART)}
        assert set(filter(None, kept.split(", "))) == restarting
        assert set(filter(None, applied.partition("applied: ")[2].split(", "))) == {*names} - restarting
        for name, value in changed.items():
            expected = reloading.base[name] if name in restarting else value
            assert reloading.in_force(name) == {expected}, name


async def test_workers_keep_their_account(reloading: Reloading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own processes have it, so that it is not free any more."""

    def taken() -> None:
        raise LockdownError("workers cannot run as uid 1: process 2 has it")

    account = reloading.agent.database.pool.setup.account
    monkeypatch.setattr(needs, "worker_account", taken)
    assert "limits.rows" in await reloading.reload(**{"limits.rows": 7})
    assert reloading.agent.database.pool.setup.account == account
