"""Every kind of event source has what is derived from its name: a setting, a table, documentation."""

from __future__ import annotations

import sys

import msgspec
import pytest
from places import ROOT

from zeek_agent import platforms
from zeek_agent.config import declarations
from zeek_agent.config.sections import SourceSettings
from zeek_agent.platforms.darwin import PLATFORM as DARWIN
from zeek_agent.platforms.linux import PLATFORM as LINUX
from zeek_agent.recording import registry
from zeek_agent.recording.registry import KINDS, candidates
from zeek_agent.recording.source import Sink, Source
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal import config_check, doctor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no sources elsewhere")
PLATFORMS = tuple(map(platforms.of, platforms.KEYS))


class Timers(Source):
    """A source that only these tests know."""

    kind = "system_logs"
    backend = "timers"
    shortcoming = "timers that never fire are missed"

    def probe(self) -> str | None:
        return None

    def start(self, sink: Sink) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
def test_the_setting_offers_exactly_the_backends(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_living_processes", lambda _group: None)
    backends: set[str] = set()
    for platform in PLATFORMS:
        sources = candidates(SourceSettings(), platform=platform)[kind]
        assert {source.kind for source in sources} <= {kind}
        assert len({source.backend for source in sources}) == len(sources)
        backends |= {source.backend for source in sources}
    choices = msgspec.inspect.type_info(declarations.settings()[f"sources.{kind}"].type)
    assert isinstance(choices, msgspec.inspect.Metadata)
    assert isinstance(choices.type, msgspec.inspect.LiteralType)
    assert set(choices.type.values) == {"auto", "off", *backends}


@pytest.mark.parametrize("kind", KINDS)
def test_a_chosen_backend_is_the_only_candidate(kind: str) -> None:
    for source in candidates(SourceSettings())[kind]:
        chosen = candidates(SourceSettings(**{kind: source.backend}))  # type: ignore[arg-type]
        assert [(one.kind, one.backend) for one in chosen[kind]] == [(kind, source.backend)]
    assert candidates(SourceSettings(**{kind: "off"}))[kind] == []  # type: ignore[arg-type]


def test_macos_has_backends_of_its_own() -> None:
    chosen = candidates(SourceSettings(processes="eslogger", system_logs="unified_log"), platform=DARWIN)
    assert [source.backend for kind in ("processes", "system_logs") for source in chosen[kind]] == [
        "eslogger",
        "unified_log",
    ]


def test_a_backend_of_another_platform_is_an_error() -> None:
    settings = SourceSettings(processes="eslogger", sockets="ebpf", logins="off")
    assert registry.unknown_backends(settings, LINUX) == {"processes": ["ebpf", "proc_connector", "audit", "snapshots"]}
    assert registry.unknown_backends(settings, DARWIN).keys() == {"sockets"}
    assert registry.unknown_backends(SourceSettings(), DARWIN) == {}
    (error,) = config_check._source_backends(SourceSettings(system_logs="unified_log"))
    assert (
        str(error)
        == "sources.system_logs: unified_log does not exist on Linux; choose one of auto, journal, syslog, off"
    )


def test_sources_whose_absence_is_a_warning_have_a_table() -> None:
    names = {table.name for table in builtin_tables() if table.kind == "events"}
    found = candidates(SourceSettings())
    essential = {kind for kind, sources in found.items() if any(source.essential for source in sources)}
    assert {f"{kind}_events" for kind in essential} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_on_sources_names_the_setting(kind: str) -> None:
    assert f"`sources.{kind}`" in (ROOT / "docs/sources.md").read_text()


def test_doctor_reports_a_new_backend_without_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.KINDS["system_logs"]
    monkeypatch.setitem(registry.KINDS, "system_logs", lambda shared: [*known(shared), Timers()])  # type: ignore[index]
    found = [check.found for check in doctor._sources(SourceSettings()) if "timers" in check.found]
    assert found in (
        ["system_logs by timers: available as a fallback"],
        [f"system_logs by timers: will be used; {Timers.shortcoming}"],
    )
    running = [("system_logs", "journal", False, "not here", None), ("system_logs", "timers", True, None, None)]
    (check,) = doctor._active_sources(running)
    assert (check.verdict, check.found) == ("warn", f"system_logs by timers, active; {Timers.shortcoming}")
