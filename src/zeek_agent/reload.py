"""A new configuration for a running agent: which changed settings can be applied, and which need a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from zeek_agent.config import declarations

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config

LIVE: Final = ("access.", "bus.", "collector.", "events.", "limits.", "metrics.", "tables.", "zeek.", "log.level")
"""Beginnings of the names of settings that a running agent can change."""

OF_AGENT: Final = (*LIVE, "agent.", "control.", "log.", "osquery.", "sources.", "state_dir")
"""Beginnings of the names of settings that `zeek-agent run` uses."""
OF_COLLECTOR: Final = ("collector.", "metrics.", "log.")
"""Beginnings of the names of settings that `zeek-agent collector` uses."""
LIVE_IN_COLLECTOR: Final = (
    "collector.agent_timeout",
    "collector.hosts_max",
    "collector.pack",
    "collector.packs",
    "collector.schedule",
    "collector.tls.",
    "metrics.",
    "log.level",
)
"""Those of them that it can change while it runs."""

OF_GATEWAY: Final = ("gateway.", "metrics.", "log.", "zeek.")
"""Beginnings of the names of settings that `zeek-agent gateway` uses."""
LIVE_IN_GATEWAY: Final = (
    "gateway.agents_max",
    "gateway.bytes_per_second",
    "gateway.drain_per_second",
    "gateway.hello_interval",
    "gateway.queries_max",
    "gateway.rows_per_second",
    "log.level",
)
"""Those of them that it can change while it runs; those of agents are for sessions that begin later."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and checked: the settings, their origins, and warnings about them."""

    config: Config
    origins: Mapping[str, str]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new configuration changes. `config` and `origins` are in force afterwards: new values of the settings in
    `applied`, old ones of those in `needs_restart`."""

    config: Config
    origins: Mapping[str, str]
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]

    def concern(self, *beginnings: str) -> bool:
        """Whether a setting is applied whose name begins with one of these."""
        return any(name.startswith(beginnings) for name in self.applied)

    def concern_others(self, beginning: str, than: str) -> bool:
        """The same for names that do not begin with `than`."""
        return any(name.startswith(beginning) and not name.startswith(than) for name in self.applied)

    def with_applied(self, *names: str) -> Changes:
        """The same with settings whose values have not changed, but the files that they name."""
        return replace(self, applied=tuple(dict.fromkeys((*self.applied, *names))))

    def summary(self) -> str:
        """For the log and the command line."""
        applied = f"applied: {', '.join(self.applied)}" if self.applied else "nothing to apply"
        rest = f"; needs a restart: {', '.join(self.needs_restart)}" if self.needs_restart else ""
        return f"configuration reloaded, {applied}{rest}"


def compare(
    config: Config,
    origins: Mapping[str, str],
    new: Loaded,
    *,
    live: tuple[str, ...] = LIVE,
    used: tuple[str, ...] = OF_AGENT,
) -> Changes:
    """The changes from the configuration in force to a new one, in settings whose names begin with one of `used`."""
    names = declarations.settings()
    changed = [
        name
        for name in names
        if name.startswith(used) and declarations.get(config, name) != declarations.get(new.config, name)
    ]
    applied = tuple(name for name in changed if name.startswith(live))
    kept = tuple(name for name in changed if not name.startswith(live))
    values = {name: declarations.get(config if name in kept else new.config, name) for name in names}
    sources = {name: (origins if name in kept else new.origins).get(name, "default") for name in names}
    return Changes(declarations.with_values(values), sources, applied, kept)
