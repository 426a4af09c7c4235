"""Locations of configuration, state directory, control socket and history.

Root uses the system's directories, everybody else those of their own (`platforms`). If a state directory is set, the
control socket is in it. `make run` sets one in its clone, where the commands of the clone's program look first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.platforms import Platform

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config

FLEET_FILES: Final = ("agent.creds", "client.pem", "client.key", "pending.seed", "enrolment.json")
"""Files in the directory `Paths.fleet`; `fleet/enrolled.py` describes them."""
SOURCE: Final = Path(__file__).resolve().parents[2]
"""The clone, if the program runs from one."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The locations of one agent's files, which need not exist yet."""

    state: Path
    socket: Path
    """The control socket of the agent with this state directory."""
    sockets: tuple[Path, ...]
    """The control sockets at which `query`, `shell` and `status` look for a running agent, in order."""
    history: Path
    """The user's shell history."""

    @property
    def identity(self) -> Path:
        return self.state / "identity.json"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def store(self) -> Path:
        """The event store's database."""
        return self.state / "events.db"

    @property
    def fleet(self) -> Path:
        """The directory of an enrolled agent's keys and certificates."""
        return self.state / "fleet"

    @property
    def results(self) -> Path:
        """The last results of differences queries."""
        return self.state / "results.db"


def locate(config: Config, environment: Mapping[str, str] = os.environ, platform: Platform = platforms.HERE) -> Paths:
    """The locations for a configuration and the current user."""
    own_state = platform.user_state(environment)
    if config.state_dir is not None:
        state = Path(config.state_dir).expanduser().absolute()
    else:
        state = platform.state_directory(environment)
    if config.control.socket is not None:
        sockets: tuple[Path, ...] = (platform.control_setting(config.control.socket),)
    elif config.state_dir is not None:
        sockets = (platform.control_of(state),)
    elif platform.is_privileged():
        sockets = (platform.system_control,)
    else:
        sockets = (platform.user_control(environment, state), platform.system_control)
    return Paths(state, sockets[0], sockets, own_state / "history")


def locate_for_commands(config: Config, environment: Mapping[str, str] = os.environ, source: Path = SOURCE) -> Paths:
    """The locations for commands other than `run`: in a clone, those of its `make run` come first, if it ever ran.

    Without a running agent, stored events are those of `make run`, too.
    """
    places = locate(config, environment)
    if config.state_dir is not None or config.control.socket is not None:
        return places
    states = states_of_clone(source)
    stored = (state for state in states if os.access(state / "events.db", os.R_OK))
    sockets = (*(platforms.HERE.control_of(state) for state in states), *places.sockets)
    return replace(places, state=next(stored, places.state), sockets=sockets)


def states_of_clone(source: Path = SOURCE) -> list[Path]:
    """The existing state directories of `make run`, the current user's first; see packaging/run.sh."""
    if not (source / "packaging/run.sh").exists():
        return []
    states = [state for state in (source / "state", *sorted(source.glob("state-*"))) if state.is_dir()]
    return sorted(states, key=lambda state: state.stat().st_uid != platforms.HERE.user_id())


def protected(config: Config, places: Paths) -> tuple[str, ...]:
    """The agent's own files and directories, which no statement may read, whatever the configuration allows.

    These are the state directory, the agent's log, the embedded collector's logs, the files of its TLS keys, and its
    credentials for the bus. Those of an enrolled agent are named, too, so that they are recognized under any hard link.
    """
    files = [config.log.file, config.bus.credentials]
    for tls in (config.zeek.tls, config.bus.tls, config.collector.tls):
        files += [tls.key, tls.certificate]
    if not config.zeek.destinations:
        files.append(config.collector.logs)
    own = [str(Path(file).expanduser().absolute()) for file in files if file is not None]
    enrolled = (str(places.fleet / name) for name in FLEET_FILES)
    return (str(places.state), *enrolled, *own)
