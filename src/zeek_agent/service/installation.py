"""Installs the agent or a gateway as a systemd service, where no distribution package does: from a wheel, by pipx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import zeek_agent
from zeek_agent import ownership, platforms
from zeek_agent.config import loading
from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms.linux import Linux
from zeek_agent.service.example import example_configuration

UNIT: Final = "zeek-agent.service"
FILES_UNITS: Final = ("zeek-agent-files.socket", "zeek-agent-files@.service")
"""The units of the process that watches files, which the other one wants."""
GATEWAY_UNIT: Final = "zeek-agent-gateway.service"
_HOMES: Final = ("/home", "/root", "/run/user")
"""Hidden from the gateway (ProtectHome=yes)."""
ACCOUNT: Final = "_zeek-agent"
_WRITTEN: Final = "# Written by `zeek-agent service install`"
_MARK: Final = _WRITTEN + "{option}, which replaces it; use `systemctl edit {name}` for changes."
_PROGRAM: Final = "=/usr/bin/zeek-agent "
"""In the settings that execute the program."""
_NOT_EXECUTED: Final = re.compile(r"[\"'\\\x00-\x1f\x7f]")
"""Characters that systemd.service(5) refuses in the path of a program. It expands no variables there."""
_OF_PACKAGES: Final = ("usr/lib/systemd/system", "lib/systemd/system")


@dataclass(frozen=True, slots=True)
class Service:
    """The service of a unit on a host whose file system is at `root`. Methods yield lines about what they did."""

    root: Path = Path("/")
    name: str = UNIT

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system" / self.name

    @property
    def configuration(self) -> Path:
        return self.root / Linux.system_configuration.relative_to("/")

    def install(self, program: Path, *, start: bool) -> Iterator[str]:
        """Write the unit and, if there is none, a configuration; start the service. Raises ZeekAgentError."""
        _require_root("install")
        _require_systemctl()
        self._require_no_package()
        for path in (program, Path(sys.executable), Path(zeek_agent.__file__)):
            _require_trusted(path)
            if self.name == GATEWAY_UNIT:
                _require_visible(path)
        for unit in self._units():
            if unit.exists() and not _is_ours(unit):
                raise ZeekAgentError(
                    f"{unit} was not written by `zeek-agent service install`: move it away, and put what you have "
                    f"changed into `systemctl edit {unit.stem}`"
                )
        for unit in self._units():
            _write(unit, unit_text(program, unit.name), 0o644)
            yield f"wrote {unit}"
        if not self.configuration.exists():
            _write(self.configuration, example_configuration(), 0o644)
            yield f"wrote {self.configuration}"
        if self.name == UNIT:
            yield self._create_account()
        yield from self._start(start=start)

    def _start(self, *, start: bool) -> Iterator[str]:
        if not self._is_booted():
            yield f"not started: systemd does not run here; `systemctl enable {self.name}` starts it with the system"
            return
        _systemctl("daemon-reload")
        if start and (missing := self._missing_settings()):
            yield f"not started: {missing}; then `systemctl enable --now {self.name}`"
        elif start:
            _systemctl("enable", self.name)
            _systemctl("restart", self.name)
            yield f"started {self.name}"

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        """Stop the service and remove the unit; with `purge` also the agent's state, logs and configuration.

        Raises ZeekAgentError.
        """
        _require_root("uninstall")
        _require_systemctl()
        if self.unit.exists():
            if not _is_ours(self.unit):
                raise ZeekAgentError(f"{self.unit} was not written by `zeek-agent service install`: remove it yourself")
            units = [unit for unit in self._units() if unit.exists() and _is_ours(unit)]
            if self._is_booted():
                _systemctl("disable", "--now", self.name)
                _systemctl("stop", self.name, *(unit.name for unit in units if unit.suffix == ".socket"))
            for unit in units:
                unit.unlink()
                yield f"removed {unit}"
            if self._is_booted():
                _systemctl("daemon-reload")
        else:
            yield f"there is no {self.unit}"
        if purge:
            for path in ("var/lib/zeek-agent", "var/log/zeek-agent", "etc/zeek-agent"):
                place = self.root / path
                if place.exists():
                    shutil.rmtree(place)
                    yield f"removed {place}"

    def _units(self) -> list[Path]:
        return [self.unit.with_name(name) for name in (self.name, *(FILES_UNITS if self.name == UNIT else ()))]

    def _missing_settings(self) -> str | None:
        """What the configuration lacks for the service to start."""
        if self.name != GATEWAY_UNIT:
            return None
        gateway = loading.load(self.configuration)[0].gateway
        missing = [name for name, value in (("servers", gateway.servers), ("cluster", gateway.cluster)) if not value]
        return f"set {' and '.join(f'gateway.{name}' for name in missing)} in {self.configuration}" if missing else None

    def _require_no_package(self) -> None:
        for directory in _OF_PACKAGES:
            if (found := self.root / directory / self.name).exists():
                raise ZeekAgentError(f"a package has installed the service ({found}): remove it first, or use it")

    def _create_account(self) -> str:
        program = shutil.which("systemd-sysusers")
        if program is None:
            return f"no account {ACCOUNT}, for which systemd-sysusers is missing: worker processes use an unnamed uid"
        text = resources.files(__package__).joinpath("zeek-agent.sysusers").read_text()
        command = [program, f"--root={self.root}", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no account {ACCOUNT} ({done.stderr.strip()}): worker processes use an unnamed uid"
        return f"worker processes run as {ACCOUNT}"

    def _is_booted(self) -> bool:
        """sd_booted(3)"""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()


@dataclass(frozen=True, slots=True)
class InstalledProgram:
    """The service for the program of this installation; see `managers.ServiceInstaller`."""

    service: Service = Service()

    def install(self, *, start: bool) -> Iterator[str]:
        return self.service.install(installed_program(), start=start)

    def uninstall(self, *, purge: bool) -> Iterator[str]:
        return self.service.uninstall(purge=purge)


def unit_text(program: Path, unit: str = UNIT) -> str:
    """A unit, with this program. Raises ZeekAgentError if systemd does not execute a program of that name."""
    name = str(program)
    if _NOT_EXECUTED.search(name) is not None:
        raise ZeekAgentError(
            f"systemd does not execute {name!r}: its name has a quote, a backslash or a control character; "
            "install it elsewhere"
        )
    quoted = name.replace("%", "%%")
    text = resources.files(__package__).joinpath(unit).read_text()
    mark = _MARK.format(option=" --gateway" * (unit == GATEWAY_UNIT), name=Path(unit).stem)
    return f"{mark}\n" + text.replace(_PROGRAM, f'="{quoted}" ')


def installed_program() -> Path:
    """The program of this installation. Raises ZeekAgentError if there is none, as in a source tree without a venv."""
    program = Path(sys.executable).with_name("zeek-agent")
    if not os.access(program, os.X_OK):
        raise ZeekAgentError(f"there is no {program}: install the agent first, with pipx or uv")
    return program


def _is_ours(unit: Path) -> bool:
    return _WRITTEN in unit.read_text(errors="replace")


def _require_root(what: str) -> None:
    if not platforms.HERE.is_privileged():
        raise ZeekAgentError(f"only root can {what} the service: sudo {installed_program()} service {what}")


def _require_systemctl() -> None:
    if shutil.which("systemctl") is None:
        raise ZeekAgentError("there is no systemctl on this host: run `zeek-agent run` by the service manager in use")


def _require_trusted(path: Path) -> None:
    """Root must not run, at every boot, what somebody else can change."""
    reason = ownership.distrusted(path)
    if reason is not None:
        raise ZeekAgentError(
            f"root must not run {path}, which others can change: {reason}. Install for root, "
            "`sudo pipx install --global zeek-agent`, and use that program"
        )


def _require_visible(path: Path) -> None:
    if any(path.resolve().is_relative_to(home) for home in _HOMES):
        raise ZeekAgentError(
            f"the gateway's unit does not see {path}, which is in a home directory: "
            "`sudo pipx install --global 'zeek-agent[fleet]'`, and use that program"
        )


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ZeekAgentError(f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}")
