"""Reading the configuration: flags, environment and a TOML file, in this order of precedence."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Final, TypeAlias, cast

from zeek_agent import platforms
from zeek_agent.config.declarations import (
    ENVIRONMENT_PREFIX,
    Config,
    Setting,
    as_toml,
    settings,
    variable_of,
    with_values,
)
from zeek_agent.config.server_sections import RETENTION_BYTES_MIN
from zeek_agent.errors import UsageError

log = logging.getLogger(__name__)

ENVIRONMENT_SHORT: Final = {"ZEEK_AGENT_ZEEK": "zeek.destinations"}
"""Variables with a special name, in addition to the general `ZEEK_AGENT_SECTION__KEY`."""


RENAMED: Final[Mapping[str, str]] = {}
"""Current names of settings, by their names in earlier versions, which still work with a warning; both dotted."""


def load(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    renamed: Mapping[str, str] = RENAMED,
    warn: Callable[[str], None] = log.warning,
    refuse: Callable[[UsageError], None] | None = None,
) -> tuple[Config, dict[str, str]]:
    """The configuration, and the origin of each setting (by dotted name).

    Precedence: flags, environment, file, defaults. `path` must exist; without one, `ZEEK_AGENT_CONFIG` and then the
    default location are tried. `flags` are by dotted name; a `str` for a setting of another type is parsed like an
    environment variable. Raises UsageError that names origin, key and remedy.

    `renamed` is like RENAMED; `warn` is called with a message for each setting given under a former name, or with a
    value that used to mean something else. `refuse` is called with each error, instead of raising the first one; the
    result then has the default in its place.
    """
    refuse = refuse or _raise
    environment = os.environ if environment is None else environment
    values = {name: setting.default for name, setting in settings().items()}
    origins = dict.fromkeys(values, "default")
    file = config_file(path, environment)
    names = _SettingNames(renamed, warn, refuse)
    for name, value, origin in (
        *(_file_values(file, names) if file else ()),
        *_environment_values(environment, names),
        *_flag_values(flags or {}, names),
    ):
        values[name], origins[name] = value, origin
    _check(values, origins, refuse)
    if not values["access.redact"] and origins["access.redact"] != "default" and origins["access.mask"] == "default":
        warn(
            f"{origins['access.redact']}: an empty access.redact no longer shows command lines in full: set "
            "access.mask = false for that, or true to silence this warning"
        )
    return with_values(values), origins


def config_file(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file to read: the given one, or else the default one if it exists.

    Raises UsageError for a default one that other users could have written for this one, who has more rights.
    """
    if path is None and (named := environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")):
        path = Path(named)
    if path is not None:
        return path
    default = platforms.HERE.configuration_file(environment)
    if not os.access(default, os.F_OK):
        return None
    try:
        reason = platforms.HERE.configuration_exposure(default)
    except OSError as error:
        reason = f"it cannot be determined who may change {default}: {error.strerror or error}"
    if reason is not None:
        raise UsageError(f"the configuration is not read, because others could have written it: {reason}")
    return default


_Given: TypeAlias = tuple[str, object, str]
"""A setting's current name, value and origin."""


@dataclass(frozen=True, slots=True)
class _GivenSetting:
    """A setting and the name, current or former, under which it was given."""

    setting: Setting
    name: str

    @property
    def called(self) -> str:
        """Its name in messages."""
        return self.name if self.name == self.setting.name else f"{self.name} (now {self.setting.name})"

    def origin(self, place: str) -> str:
        return place if self.name == self.setting.name else f"{place} as {self.name}"


@dataclass(frozen=True, slots=True)
class _SettingNames:
    """The names under which settings may be given: current and former ones."""

    renamed: Mapping[str, str]
    warn: Callable[[str], None]
    refuse: Callable[[UsageError], None]

    def converted(self, convert: Callable[[], object]) -> Iterator[object]:
        """The converted value, or none if it is refused."""
        try:
            value = convert()
        except UsageError as error:
            self.refuse(error)
        else:
            yield value

    def __iter__(self) -> Iterator[str]:
        return iter((*settings(), *self.renamed))

    def __contains__(self, name: str) -> bool:
        return name in settings() or name in self.renamed

    def resolved(self, given: Iterable[str], place: str, spell: Callable[[str], str] = str) -> Iterator[_GivenSetting]:
        """The settings given by one source, all under known names; `spell` turns a name into that source's spelling.

        A former name is used unless the current one is given too; either way there is a warning.
        """
        taken = set(given) & settings().keys()
        for name in sorted(given):
            now = self.renamed.get(name, name)
            if now != name:
                if now in taken:
                    self.warn(f"{place}: {spell(name)} is ignored: {spell(now)}, its new name, is set too")
                    continue
                self.warn(f"{place}: {spell(name)} is deprecated, use its new name {spell(now)}")
                taken.add(now)
            yield _GivenSetting(settings()[now], name)


def _file_values(file: Path, names: _SettingNames) -> Iterator[_Given]:
    import tomllib

    try:
        document = tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        names.refuse(UsageError(f"cannot read the configuration {file}: {error.strerror}"))
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        names.refuse(UsageError(f"{file}: not valid TOML: {error}"))
        return
    place = str(file)
    given = dict(_flatten(document, "", place, names))
    for one in names.resolved(given, place):
        for value in names.converted(partial(one.setting.convert, given[one.name], place, one.called)):
            yield one.setting.name, value, one.origin(place)


def _flatten(
    document: Mapping[str, object], prefix: str, origin: str, names: _SettingNames
) -> Iterator[tuple[str, object]]:
    """Values by dotted name, current or former, not yet converted."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in names:
            yield name, value
        elif not any(known.startswith(f"{name}.") for known in names):
            names.refuse(_unknown(name, origin))
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.", origin, names)
        else:
            got = shorten(as_toml(value), 80)
            names.refuse(UsageError(f"{origin}: {name}: expected a section ([{name}]), got {got}"))


def _environment_values(environment: Mapping[str, str], names: _SettingNames) -> Iterator[_Given]:
    """Values of variables that are not empty. Unknown names without `__` are ignored."""
    known = {variable_of(name): name for name in names}
    given: dict[str, str] = {}
    for variable in sorted(environment, key=lambda name: (name not in ENVIRONMENT_SHORT, name)):
        if not variable.startswith(ENVIRONMENT_PREFIX) or not environment[variable]:
            continue
        if name := ENVIRONMENT_SHORT.get(variable) or known.get(variable):
            given[name] = variable
        elif "__" in variable:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            names.refuse(_unknown(name, f"environment {variable}"))
    for one in names.resolved(given, "environment", variable_of):
        variable = given[one.name]
        place = f"environment {variable}"
        for value in names.converted(partial(one.setting.parse, environment[variable], place, one.called)):
            yield one.setting.name, value, place


def _flag_values(flags: Mapping[str, object], names: _SettingNames) -> Iterator[_Given]:
    place = "command line"
    for name in flags:
        if name not in names:
            names.refuse(_unknown(name, place))
    known = {name: value for name, value in flags.items() if name in names}
    for one in names.resolved(known, place):
        value, setting = known[one.name], one.setting
        read = setting.parse if isinstance(value, str) else setting.convert
        for converted in names.converted(partial(read, value, place, one.called)):  # type: ignore[arg-type]
            yield setting.name, converted, one.origin(place)


def _unknown(name: str, origin: str) -> UsageError:
    last = name.rpartition(".")[2]
    sections = {known.rpartition(".")[0] for known in settings()} - {""}
    near = [known for known in settings() if known.rpartition(".")[2] == last]
    if not near:
        import difflib

        near = difflib.get_close_matches(name, [*settings(), *sections], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"{origin}: unknown key {name}{hint}")


def _raise(error: UsageError) -> None:
    raise error


def _check(values: dict[str, object], origins: dict[str, str], refuse: Callable[[UsageError], None]) -> None:
    """Check what types cannot express: syntax of destinations, upper bounds not below lower ones."""
    from zeek_agent import destination

    def reject(message: str, *names: str) -> None:
        refuse(UsageError(message))
        for name in names:
            values[name], origins[name] = settings()[name].default, "default"

    valid: list[str] = []
    for text in cast("Sequence[str]", values["zeek.destinations"]):
        try:
            destination.parse_all((*valid, text))
        except UsageError as error:
            refuse(UsageError(f"{origins['zeek.destinations']}: zeek.destinations: {error}"))
        else:
            valid.append(text)
    values["zeek.destinations"] = tuple(map(str, destination.parse_all(valid)))
    for name, problem in _listen_problems(values):
        reject(f"{origins[name]}: {name}: {problem}", name)
    retained = cast("int | None", values["collector.retention_bytes"])
    if retained is not None and 0 < retained < RETENTION_BYTES_MIN:
        name = "collector.retention_bytes"
        reject(f"{origins[name]}: {name} ({retained}) is less than {RETENTION_BYTES_MIN}; 0 stands for no limit", name)
    for low, high in (("zeek.reconnect_min", "zeek.reconnect_max"), ("zeek.window_bytes", "zeek.window_bytes_max")):
        if cast("float", values[low]) > cast("float", values[high]):
            origin = origins[high] if origins[high] != "default" else origins[low]
            reject(f"{origin}: {high} ({values[high]}) is less than {low} ({values[low]})", low, high)


def _listen_problems(values: Mapping[str, object]) -> Iterator[tuple[str, ValueError]]:
    """Addresses to listen on that are invalid: the setting, and what is wrong."""
    from zeek_agent import destination

    for name, parse in (
        ("collector.listen", destination.parse_listen),
        ("metrics.listen", destination.parse_local_listen),
    ):
        try:
            if values[name] is not None:
                parse(cast("str", values[name]))
        except ValueError as problem:
            yield name, problem
