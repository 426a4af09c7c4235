"""Configuration: where a value comes from, and what is said about one that cannot be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from zeek_agent.config import declarations, loading
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.config.server_sections import CollectorSettings
from zeek_agent.errors import UsageError
from zeek_agent.terminal import config_check


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "zeek-agent.toml"


def complaint(file: Path | None = None, environment: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(UsageError) as caught:
        loading.load(file, environment or {}, {name.replace("__", "."): value for name, value in flags.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_flags_override_environment_overrides_file_overrides_defaults(file: Path) -> None:
    file.write_text('[limits]\ntime = 1\nrows = 1\nworkers = 1\n[log]\nlevel = "debug"\n')
    environment = {"ZEEK_AGENT_LIMITS__TIME": "2", "ZEEK_AGENT_LIMITS__ROWS": "2"}
    loaded, origins = loading.load(file, environment, {"limits.time": 3})
    assert (loaded.limits.time, loaded.limits.rows, loaded.limits.workers) == (3.0, 2, 1)
    assert loaded.limits.value_bytes == LimitSettings().value_bytes
    assert origins["limits.time"] == "command line"
    assert origins["limits.rows"] == "environment ZEEK_AGENT_LIMITS__ROWS"
    assert origins["limits.workers"] == origins["log.level"] == str(file)
    assert origins["limits.value_bytes"] == "default"


def test_a_whole_number_is_fine_where_a_number_is_expected(file: Path) -> None:
    file.write_text("zeek.hello_interval = 5\n")
    loaded, _ = loading.load(file, {})
    assert loaded.zeek.hello_interval == 5.0


def test_destinations_from_the_environment_are_separated_by_spaces_or_commas() -> None:
    loaded, _ = loading.load(None, {"ZEEK_AGENT_ZEEK": "zeek1, wss://zeek2:443 [::1]:99", "HOME": "/nonexistent"})
    assert [url.partition("/v1/")[0] for url in loaded.zeek.destinations] == [
        "ws://zeek1:27759",
        "wss://zeek2:443",
        "ws://[::1]:99",
    ]


def test_lists_with_spaces_in_them_can_be_given_as_json() -> None:
    variable = declarations.settings()["access.redact"].variable
    loaded, _ = loading.load(None, {variable: r'["a, b", "\\d+"]', "HOME": "/nonexistent"})
    assert loaded.access.redact == ("a, b", r"\d+")


def test_foreign_and_empty_variables_are_ignored() -> None:
    environment = {"ZEEK_AGENT_PORT": "tcp://10.0.0.1:80", "ZEEK_AGENT_STATE_DIR": "", "HOME": "/nonexistent"}
    loaded, origins = loading.load(None, environment)
    assert loaded == declarations.Config()
    assert set(origins.values()) == {"default"}


def test_the_file_can_be_named_by_the_environment(file: Path) -> None:
    file.write_text('state_dir = "/somewhere"\n')
    loaded, _ = loading.load(None, {"ZEEK_AGENT_CONFIG": str(file)})
    assert loaded.state_dir == "/somewhere"


RENAMED = {"limits.seconds": "limits.time", "bounds.rows": "limits.rows", "directory": "state_dir"}
"""As if these settings had had other names before, one of them in a section that is gone."""


def loaded_as_renamed(
    file: Path | None = None, environment: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> tuple[declarations.Config, dict[str, str], list[str]]:
    warnings: list[str] = []
    environment = {"HOME": "/nonexistent", **(environment or {})}
    loaded, origins = loading.load(file, environment, flags, renamed=RENAMED, warn=warnings.append)
    return loaded, {name: origin for name, origin in origins.items() if origin != "default"}, warnings


def test_a_former_name_works_in_the_file_with_a_warning(file: Path) -> None:
    file.write_text('directory = "/somewhere"\n[limits]\nseconds = 3\n[bounds]\nrows = 5\n')
    loaded, origins, warnings = loaded_as_renamed(file)
    assert (loaded.state_dir, loaded.limits.time, loaded.limits.rows) == ("/somewhere", 3.0, 5)
    assert origins["limits.time"] == f"{file} as limits.seconds"
    assert warnings == [
        f"{file}: bounds.rows is deprecated, use its new name limits.rows",
        f"{file}: directory is deprecated, use its new name state_dir",
        f"{file}: limits.seconds is deprecated, use its new name limits.time",
    ]


def test_a_former_name_works_in_the_environment_with_a_warning() -> None:
    loaded, origins, warnings = loaded_as_renamed(environment={"ZEEK_AGENT_LIMITS__SECONDS": "3"})
    assert loaded.limits.time == 3.0
    assert origins == {"limits.time": "environment ZEEK_AGENT_LIMITS__SECONDS"}
    assert warnings == [
        "environment: ZEEK_AGENT_LIMITS__SECONDS is deprecated, use its new name ZEEK_AGENT_LIMITS__TIME"
    ]


def test_a_former_name_works_on_the_command_line_with_a_warning() -> None:
    loaded, origins, warnings = loaded_as_renamed(flags={"limits.seconds": "3"})
    assert loaded.limits.time == 3.0
    assert origins == {"limits.time": "command line as limits.seconds"}
    assert warnings == ["command line: limits.seconds is deprecated, use its new name limits.time"]


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("redact = []", True),
        ("redact = []\nmask = true", False),
        ("redact = []\nmask = false", False),
        ("redact = ['hunter2']", False),
        ("", False),
    ],
)
def test_an_empty_redact_which_once_showed_secrets_warns(file: Path, text: str, warned: bool) -> None:
    file.write_text(f"[access]\n{text}\n")
    _, _, warnings = loaded_as_renamed(file)
    assert [("access.redact" in warning, str(file) in warning) for warning in warnings] == [(True, True)] * warned


def test_the_current_name_wins_over_a_former_one_in_the_same_source(file: Path) -> None:
    file.write_text("limits.time = 1\nlimits.seconds = 2\n")
    variables = {"ZEEK_AGENT_BOUNDS__ROWS": "3", "ZEEK_AGENT_LIMITS__ROWS": "4"}
    loaded, origins, warnings = loaded_as_renamed(file, variables, {"directory": "/old", "state_dir": "/new"})
    assert (loaded.limits.time, loaded.limits.rows, loaded.state_dir) == (1.0, 4, "/new")
    assert origins["limits.time"] == str(file)
    assert warnings == [
        f"{file}: limits.seconds is ignored: limits.time, its new name, is set too",
        "environment: ZEEK_AGENT_BOUNDS__ROWS is ignored: ZEEK_AGENT_LIMITS__ROWS, its new name, is set too",
        "command line: directory is ignored: state_dir, its new name, is set too",
    ]


def test_a_former_name_has_the_rank_of_its_place(file: Path) -> None:
    file.write_text("limits.time = 1\n")
    loaded, _, warnings = loaded_as_renamed(file, {"ZEEK_AGENT_LIMITS__SECONDS": "2"})
    assert (loaded.limits.time, len(warnings)) == (2.0, 1)
    loaded, _, _ = loaded_as_renamed(file, {"ZEEK_AGENT_LIMITS__SECONDS": "2"}, {"limits.time": 3})
    assert loaded.limits.time == 3.0


def test_a_wrong_value_under_a_former_name_is_named_by_both(file: Path) -> None:
    file.write_text("limits.seconds = 'soon'\n")
    with pytest.raises(UsageError) as caught:
        loaded_as_renamed(file)
    assert str(caught.value).startswith(f"{file}: limits.seconds (now limits.time): expected a number > 0")


def test_a_name_that_no_setting_ever_had_is_still_an_error(file: Path) -> None:
    file.write_text("[bounds]\ncolumns = 5\n")
    with pytest.raises(UsageError, match=re.escape(f"{file}: unknown key bounds.columns")):
        loaded_as_renamed(file)


def test_former_names_lead_to_present_settings_and_are_taken_by_none() -> None:
    assert set(loading.RENAMED.values()) <= declarations.settings().keys()
    assert loading.RENAMED.keys().isdisjoint(declarations.settings())


def test_an_unknown_key_is_an_error_that_names_the_nearest_one(file: Path) -> None:
    file.write_text("[zeek]\nhello_intervall = 5\n")
    assert complaint(file) == f"{file}: unknown key zeek.hello_intervall; did you mean zeek.hello_interval?"
    file.write_text("[zeke]\nhello_interval = 5\n")
    assert complaint(file) == f"{file}: unknown key zeke; did you mean zeek?"
    file.write_text("hello_interval = 5\n")
    assert complaint(file).endswith("did you mean zeek.hello_interval?")
    assert "limits.time" in complaint(None, {"ZEEK_AGENT_LIMITS__TIMES": "5"})
    assert "limits.time" in complaint(limits__tim=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits.rows = 'many'", 'limits.rows: expected a whole number > 0, got "many"'),
        ("limits.rows = 0", "limits.rows: expected a whole number > 0, got 0"),
        ("limits.time = true", "limits.time: expected a number > 0, got true"),
        ("limits.time = inf", "limits.time: expected a number > 0, got inf"),
        ("limits.time = nan", "limits.time: expected a number > 0, got nan"),
        ("sources.processes = 'magic'", "sources.processes: expected one of "),
        ("zeek.groups = 'servers'", 'zeek.groups: expected a list, each a string, got "servers"'),
        ("zeek.groups = [1]", "zeek.groups: expected a list, each a string, got [1]"),
        ("zeek = 5", "zeek: expected a section ([zeek]), got 5"),
        ("limits.rows.most = 5", "limits.rows: expected a whole number > 0, got a section"),
        ("zeek.tls.insecure = 1", "zeek.tls.insecure: expected true or false, got 1"),
        ('sources.files_watch = ["etc"]', "sources.files_watch: expected a list, each an absolute path, in which"),
        ('sources.files_watch = ["/a/**/b"]', "sources.files_watch: expected a list, each an absolute path, in which"),
        (
            r'sources.files_watch = ["/a\u0000"]',
            "sources.files_watch: expected a list, each an absolute path, in which",
        ),
        ("sources.files_window = 60", "sources.files_window: expected a number >= 0.1 <= 30, got 60"),
        ("collector.schedule = -1", "collector.schedule: expected a number > 0, got -1"),
    ],
)
def test_a_wrong_type_names_key_and_expectation(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith(f"{file}: {expected}")


def test_all_of_a_directory_can_be_watched_with_or_without_stars(file: Path) -> None:
    file.write_text('sources.files_watch = ["/srv/**", "/srv", "!/home/*/.cache/**", "/**"]')
    loaded, _ = loading.load(file, {})
    assert loaded.sources.files_watch == ("/srv/**", "/srv", "!/home/*/.cache/**", "/**")


def test_inconsistent_values_are_refused(file: Path) -> None:
    file.write_text("[zeek]\nreconnect_min = 100\n")
    assert "zeek.reconnect_max (60.0) is less than zeek.reconnect_min (100.0)" in complaint(file)
    assert "expected HOST:PORT" in complaint(collector__listen="27759")
    assert "collector.retention_bytes (1000) is less than 16777216" in complaint(collector__retention_bytes=1000)
    assert "zeek.destinations" in complaint(zeek__destinations=["http://zeek"])


def test_a_file_that_is_missing_or_no_toml_is_named(file: Path, tmp_path: Path) -> None:
    assert complaint(file) == f"cannot read the configuration {file}: No such file or directory"
    assert str(tmp_path) in complaint(tmp_path)
    file.write_text("[zeek\n")
    assert complaint(file).startswith(f"{file}: not valid TOML: ")
    file.write_bytes(b"\xff")
    assert complaint(file).startswith(f"{file}: not valid TOML: ")


def test_rows_have_value_origin_and_default_of_every_setting() -> None:
    loaded, origins = loading.load(None, {"HOME": "/nonexistent"}, {"zeek.groups": ["a", "b"], "log.level": "debug"})
    rows = {name: rest for name, *rest in declarations.rows(loaded, origins)}
    assert rows.keys() == declarations.settings().keys()
    assert rows["zeek.groups"] == ['["a", "b"]', "command line", "[]"]
    assert rows["log.level"] == ["debug", "command line", "info"]
    assert rows["agent.id"] == [None, "default", None]


def test_missing_files_and_groups_are_named(tmp_path: Path) -> None:
    for name, value in {
        "zeek.tls.ca_file": str(tmp_path / "absent.pem"),
        "control.group": "no-such-group",
        "log.file": str(tmp_path / "absent" / "log"),
        "access.redact": ["("],
        "collector.pack": str(tmp_path / "absent.toml"),
    }.items():
        loaded, _ = loading.load(None, {"HOME": "/nonexistent"}, {name: value})
        with pytest.raises(UsageError) as caught:
            config_check.check_files_and_groups(loaded)
        assert name in str(caught.value) or str(value) in str(caught.value)


def loaded_with(**settings: object) -> declarations.Config:
    values = {name.replace("__", "."): value for name, value in settings.items()}
    return loading.load(None, {"HOME": "/nonexistent"}, values)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["allow", "deny"])
@pytest.mark.parametrize(
    ("rule", "nearest"),
    [
        ("proceses", "processes"),
        ("socket_event", "socket_events"),
        ("file_lines", "files_lines"),
        ("processes_event_history", "processes_events_history"),
        ("deb_package", "deb_packages"),
    ],
)
def test_an_unknown_table_in_access_rules_is_an_error_that_names_the_nearest(
    kind: str, rule: str, nearest: str
) -> None:
    for socket in ("off", "auto"):
        settings = loaded_with(**{f"access__tables_{kind}": ["users", rule], "osquery__socket": socket})
        with pytest.raises(
            UsageError, match=rf"access.tables_{kind}: there is no table '{rule}'; .*'{nearest}'.*tables"
        ):
            config_check.check_files_and_groups(settings)


@pytest.mark.parametrize("rule", ["processes", "processes.cmdlin", "procesess.cmdline", "", "."])
@pytest.mark.parametrize("socket", ["off", "auto"])
def test_a_rule_for_a_column_that_does_not_exist_is_an_error(rule: str, socket: str) -> None:
    settings = loaded_with(access__columns_deny=["processes.cmdline", rule], osquery__socket=socket)
    with pytest.raises(UsageError, match=f"access.columns_deny: .*{re.escape(repr(rule))}"):
        config_check.check_files_and_groups(settings)


@pytest.mark.parametrize("rule", ["procesess", "processes.cmdlin"])
def test_a_rule_for_secrets_that_do_not_exist_is_an_error(rule: str) -> None:
    settings = loaded_with(access__secrets_deny=["shell_history", rule], osquery__socket="off")
    with pytest.raises(UsageError, match=f"access.secrets_deny: there is no .*{re.escape(repr(rule))}"):
        config_check.check_files_and_groups(settings)
    config_check.check_files_and_groups(loaded_with(access__secrets_deny=["users", "logins_events.command"]))


def test_rules_for_columns_may_name_those_of_events_and_of_osquery(caplog: pytest.LogCaptureFixture) -> None:
    rules = ["logins_events.command", "logins_events_history.*", "*.cmdline", "process_events.cmdline"]
    config_check.check_files_and_groups(loaded_with(access__columns_deny=rules, osquery__socket="off"))
    rules = ["osquery_users.description", "augeas.value"]
    config_check.check_files_and_groups(loaded_with(access__columns_deny=rules, osquery__socket="auto"))
    assert caplog.messages == []
    with pytest.raises(UsageError, match=r"there is no column 'augeas\.value'"):
        config_check.check_files_and_groups(loaded_with(access__columns_deny=rules[1:], osquery__socket="off"))


def test_rules_may_name_any_table_of_any_platform_and_of_osquery(caplog: pytest.LogCaptureFixture) -> None:
    rules = ["users", "files_*", "*_events", "process_events", "processes_events_history", "deb_packages", "osquery_x"]
    config_check.check_files_and_groups(loaded_with(access__tables_allow=rules, access__tables_deny=["zeek_agent_*"]))
    assert caplog.messages == []
    config_check.check_files_and_groups(loaded_with(access__tables_allow=["my_own_extension"]))
    assert "there is no table 'my_own_extension'" in caplog.text
    assert "write osquery_my_own_extension" in caplog.text
    with pytest.raises(UsageError, match="there is no table 'my_own_extension'"):
        config_check.check_files_and_groups(
            loaded_with(access__tables_allow=["my_own_extension"], osquery__socket="off")
        )


@given(st.text(max_size=30))
def test_any_text_for_any_setting_is_taken_or_refused_in_words(text: str) -> None:
    for setting in declarations.settings().values():
        message = None
        try:
            value = setting.parse(text, "here")
        except UsageError as error:
            message = str(error)
        if message is None:
            assert setting.convert(value, "here") == value
        else:
            assert message.startswith(f"here: {setting.name}: expected ")


def test_every_default_is_a_valid_value_and_survives_toml() -> None:
    for setting in declarations.settings().values():
        assert setting.summary
        if setting.default is not None:
            read = tomllib.loads(f"x = {declarations.literal(setting.default)}")["x"]
            assert setting.convert(read, "here") == setting.default


def test_all_errors_can_be_collected(file: Path) -> None:
    file.write_text('nonsense = 1\nzeek = 3\n[limits]\ntme = 3\nrows = "soon"\ntime = 5\n')
    environment = {"ZEEK_AGENT_LIMITS__WORKERS": "many", "ZEEK_AGENT_LIMITS__NONE": "1"}
    flags = {
        "log.levle": "info",
        "zeek.destinations": ["a:b:c", "zeek", "x:99999"],
        "zeek.reconnect_min": 9,
        "zeek.reconnect_max": 1,
        "collector.listen": "nowhere",
    }
    refused: list[UsageError] = []
    loaded, origins = loading.load(file, environment, flags, refuse=refused.append)
    assert [re.sub(r"\(.*", "", str(error)).removeprefix(f"{file}: ") for error in refused] == [
        "unknown key nonsense",
        "zeek: expected a section ",
        "unknown key limits.tme; did you mean limits.time?",
        'limits.rows: expected a whole number > 0, got "soon"',
        "environment ZEEK_AGENT_LIMITS__NONE: unknown key limits.none; did you mean limits.time?",
        'environment ZEEK_AGENT_LIMITS__WORKERS: limits.workers: expected a whole number > 0, got "many"',
        "command line: unknown key log.levle; did you mean log.level?",
        "command line: zeek.destinations: not a destination: 'a:b:c' ",
        "command line: zeek.destinations: not a destination: 'x:99999' ",
        "command line: collector.listen: expected HOST:PORT, got 'nowhere'",
        "command line: zeek.reconnect_max ",
    ]
    assert loaded.limits == structs.replace(LimitSettings(), time=5.0)
    assert origins["limits.time"] == str(file)
    assert loaded.zeek.destinations == ("ws://zeek:27759/v1/messages/json",)
    assert loaded.collector == CollectorSettings()


def test_every_access_rule_is_checked() -> None:
    access = AccessSettings(redact=("(", "fine", "["))
    errors, warnings = config_check.all_problems(declarations.Config(access=access))
    assert [error.partition(" is not")[0] for error in errors] == ["access.redact: '('", "access.redact: '['"]
    assert warnings == []


@pytest.mark.parametrize("listen", ["127.0.0.1:9131", "[::1]:9131", "localhost:0", "127.8.9.10:1", "unix:/run/x.sock"])
def test_metrics_are_served_locally(listen: str) -> None:
    assert loaded_with(metrics__listen=listen).metrics.listen == listen


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("0.0.0.0:9131", "expected a loopback address"),
        ("[::]:9131", "expected a loopback address"),
        ("192.0.2.1:9131", "expected a loopback address"),
        ("zeek.example.net:9131", "expected a loopback address"),
        ("localhost.example.net:9131", "expected a loopback address"),
        ("unix:relative.sock", "expected an absolute path"),
        ("9131", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
    ],
)
def test_metrics_are_served_on_the_loopback_interface_only(listen: str, problem: str) -> None:
    with pytest.raises(UsageError, match=rf"metrics\.listen: {problem}"):
        loaded_with(metrics__listen=listen)
