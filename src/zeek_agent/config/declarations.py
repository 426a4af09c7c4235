"""All settings: one frozen object, the declaration of each setting, and their values as text.

`docs/configuration.md` and the table `zeek_agent_config` are derived from the declarations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from textwrap import shorten
from typing import Annotated, Any, Final, NamedTuple, cast, get_type_hints

import msgspec
from msgspec import Meta

from zeek_agent import setting_types
from zeek_agent.config.sections import (
    AccessSettings,
    AgentSettings,
    BusSettings,
    ControlSettings,
    EventSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    OsquerySettings,
    Section,
    SourceSettings,
    TablesSettings,
    ZeekSettings,
)
from zeek_agent.config.server_sections import CollectorSettings, GatewaySettings
from zeek_agent.errors import UsageError

ENVIRONMENT_PREFIX: Final = "ZEEK_AGENT_"


class Config(Section, frozen=True):
    """All settings."""

    state_dir: Annotated[str | None, Meta(description="directory of identity, event store and delivery state")] = None
    agent: AgentSettings = AgentSettings()
    zeek: ZeekSettings = ZeekSettings()
    bus: BusSettings = BusSettings()
    limits: LimitSettings = LimitSettings()
    access: AccessSettings = AccessSettings()
    events: EventSettings = EventSettings()
    sources: SourceSettings = SourceSettings()
    tables: TablesSettings = TablesSettings()
    collector: CollectorSettings = CollectorSettings()
    gateway: GatewaySettings = GatewaySettings()
    osquery: OsquerySettings = OsquerySettings()
    log: LogSettings = LogSettings()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of a setting: dotted name, type, meaning, default."""

    name: str
    type: Any
    summary: str
    default: object

    @property
    def expected(self) -> str:
        """The values that it accepts, in words."""
        return setting_types.in_words(self.type)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return variable_of(self.name)

    def convert(self, value: object, origin: str, called: str | None = None) -> object:
        """Check and convert a value. Raises UsageError that names the key, its origin and the expected values.

        `called` is the key's name in the message if it differs from the setting's.
        """
        try:
            if not isinstance(value, float) or math.isfinite(value):
                return msgspec.convert(value, self.type)
            shown = str(value)
        except msgspec.ValidationError:
            shown = "a section" if isinstance(value, Mapping) else shorten(as_toml(value), 80)
        raise UsageError(f"{origin}: {called or self.name}: expected {self.expected}, got {shown}")

    def parse(self, text: str, origin: str, called: str | None = None) -> object:
        """Convert a value given as text by the environment or `--set`."""
        return self.convert(setting_types.from_text(self.type, text), origin, called)


@cache
def settings() -> Mapping[str, Setting]:
    """Every setting by its dotted name, in the order of the declarations."""
    return {setting.name: setting for setting in _declared(Config, "")}


def _declared(section: type[Section], prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _declared(hint, f"{prefix}{field.name}.")
        else:
            summary = next(meta.description for meta in reversed(hint.__metadata__) if meta.description)
            yield Setting(f"{prefix}{field.name}", hint, summary, field.default)


class SettingStatus(NamedTuple):
    """A row of `zeek_agent_config`, which describes the columns."""

    name: str
    value: str | None
    origin: str
    default_value: str | None


def rows(config: Config, origins: Mapping[str, str]) -> Iterator[SettingStatus]:
    """Every setting. None contains a secret; they only name files that do."""
    for name, setting in settings().items():
        yield SettingStatus(name, _shown(get(config, name)), origins.get(name, "default"), _shown(setting.default))


def get(config: Config, name: str) -> object:
    """The value of the setting with that dotted name."""
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def with_values(values: Mapping[str, object]) -> Config:
    """The configuration with these values of all settings, by their dotted names."""
    return cast("Config", _build(Config, "", values))


def literal(value: object) -> str:
    """A value in TOML syntax; empty if unset."""
    return "" if value is None else as_toml(value)


def as_toml(value: object) -> str:
    """The same for a value that is set."""
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()


def _shown(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else as_toml(value)


def _build(section: type[Section], prefix: str, values: Mapping[str, object]) -> Section:
    parts = {}
    for field in msgspec.structs.fields(section):
        name = f"{prefix}{field.name}"
        parts[field.name] = values[name] if name in values else _build(type(field.default), f"{name}.", values)
    return section(**parts)


def variable_of(name: str) -> str:
    """The environment variable of the setting with that dotted name."""
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")
