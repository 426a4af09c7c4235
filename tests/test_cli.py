"""The program as it is started: what it prints, where, and its exit codes."""

from __future__ import annotations

import asyncio
import csv
import grp
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from acting import NOBODY, acting_as
from waiting import until_sync
from zeek_server import zeek_server

from zeek_agent import bpf
from zeek_agent.config.loading import load
from zeek_agent.errors import ZeekAgentError
from zeek_agent.events.store import EventStore
from zeek_agent.queries.subscriptions import Query
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal import console, responders
from zeek_agent.zeek.protocol import AgentHello, ResultRow

PROGRAM = [sys.executable, "-m", "zeek_agent"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def environment(**more: str) -> dict[str, str]:
    """The process's own, without settings of the agent, and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_AGENT_")}
    return {**kept, **more}


def run(
    *arguments: str, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        env=env or environment(),
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on standard error of a command that ended with that code."""
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("zeek-agent: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@contextmanager
def started(*arguments: str, program: Sequence[str] = PROGRAM, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """The program while it runs; killed if it still does in the end."""
    process = subprocess.Popen([*program, *arguments], text=True, env=environment(), **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long(kept=5)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["query"], "Missing argument 'SQL'"),
        (["query", "--nonsense", "SELECT 1"], "--nonsense"),
        (["query", "--format", "xml", "SELECT 1"], "'xml'"),
        (["qurey", "SELECT 1"], "qurey"),
        (["query", "--set", "limits.tme=5", "SELECT 1"], "did you mean limits.time?"),
        (["query", "--set", "limits.time=soon", "SELECT 1"], "limits.time: expected a number > 0"),
        (["query", "--set", "limits.time", "SELECT 1"], "expected KEY=VALUE"),
        (["query", "--config", "/nonexistent.toml", "SELECT 1"], "/nonexistent.toml: No such file"),
        (["run", "--zeek", "http://zeek"], "http"),
        (["run", "--zeek", "zeek:99999"], "zeek:99999"),
        (["collector", "--listen", "nowhere"], "expected HOST:PORT"),
        (["collector", "--pack", "/nonexistent.toml"], "/nonexistent.toml"),
        (["tables", "procesess", "--state-dir", "/nonexistent"], "did you mean processes?"),
        (["config", "check", "--set", "zeek.tls.ca_file=/nonexistent.pem"], "zeek.tls.ca_file"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(arguments: Sequence[str], named: str) -> None:
    assert named in complaint(run(*arguments), 2)


def test_help_and_version_are_for_all_commands() -> None:
    assert "query" in run("--help").stdout
    assert run("run", "-h").returncode == 0
    assert run("--version").stdout.startswith("zeek-agent, version ")
    nothing = run()
    assert nothing.returncode == 2
    assert "Usage" in nothing.stderr


def test_a_query_without_an_agent_is_answered_here(state: Path) -> None:
    done = run("query", f"SELECT pid FROM processes WHERE pid = {os.getpid()}", "--state-dir", str(state))
    assert (done.returncode, done.stderr) == (0, no_agent(state, f"no recorded events in {state}"))
    assert done.stdout.splitlines()[-1].strip() == str(os.getpid())
    assert not state.exists()


def no_agent(state: Path, events: str) -> str:
    """What a command without a running agent writes to standard error."""
    return f"zeek-agent: no agent is running: this host is read directly; {events}\n"


@pytest.mark.long
def test_a_query_without_an_agent_says_how_old_the_newest_event_is(state: Path) -> None:
    table = next(table for table in builtin_tables() if table.name == "processes_events")
    store = EventStore(state / "events.db", [table])
    moment = time.time() - 7_500
    for offset in (-60.0, 0.0, -1.0):
        values = {"time": moment + offset, "name": "x", "pid": 1}
        store.append("processes_events", [tuple(values.get(column.name) for column in table.columns[:-1])])
    store.flush()
    store.close()
    done = run("query", "SELECT count(*) AS n FROM processes_events", "--format", "csv", "--state-dir", str(state))
    assert done.stdout == "n\n3\n"
    shown = f"the newest event in {state}/events.db is 2 h 5 min old ({console.iso_time(moment)})"
    assert done.stderr == no_agent(state, shown)


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    "arguments",
    [
        ["-- why\nSELECT 7 AS n", "--format", "csv"],
        ["--format", "csv", "--why\nSELECT 7 AS n"],
        ["--why=x; really\nSELECT 7 AS n", "-f", "csv"],
        ["-f", "csv", "--", "-- why\nSELECT 7 AS n"],
        ["-f", "csv", "--\nSELECT 7 AS n"],
        ["-f", "csv", "--set", "agent.hostname=-- x\n", "-- why\n\n/* and */ SELECT 7 AS n"],
        ["-f", "csv", "--set=agent.hostname=\n", "SELECT 7 AS n -- end"],
    ],
)
def test_a_statement_can_begin_with_a_comment(arguments: Sequence[str], state: Path) -> None:
    done = run("query", "--state-dir", str(state), *arguments)
    assert (done.stdout, done.returncode) == ("n\n7\n", 0), done.stderr


@pytest.mark.long
def test_a_statement_that_is_only_a_comment_is_no_option(state: Path) -> None:
    assert "there is no statement" in complaint(run("query", "-- why", "--state-dir", str(state)), 1)


@pytest.mark.long
def test_files_that_are_not_read_are_counted(state: Path) -> None:
    sql = "SELECT count(*) AS n FROM files_lines('/etc/shado[w]')"
    done = run("query", sql, "--format", "csv", "--state-dir", str(state))
    assert (done.stdout, done.returncode) == ("n\n0\n", 0)
    assert "zeek-agent: files omitted: 1 refused: /etc/shadow refused (denied by access.paths_deny" in done.stderr


@pytest.mark.long
def test_an_unknown_name_is_answered_with_the_nearest(state: Path) -> None:
    place = ("--state-dir", str(state))
    assert "no such table: usres; did you mean users?" in complaint(run("query", "SELECT * FROM usres", *place), 1)
    assert "nme; did you mean name?" in complaint(run("query", "SELECT nme FROM users", *place), 1)


def test_the_state_directory_can_come_from_the_environment(state: Path) -> None:
    done = run("status", env=environment(ZEEK_AGENT_STATE_DIR=str(state)))
    assert str(state) in complaint(done, 1)


@pytest.mark.long
def test_results_have_four_formats(state: Path) -> None:
    sql = "SELECT 1 AS a, NULL AS b, 'x' AS c"
    texts = {
        mode: run("query", sql, "-f", mode, "--state-dir", str(state)).stdout
        for mode in ("table", "json", "csv", "line")
    }
    assert texts["table"].splitlines()[-1].split() == ["1", "-", "x"]
    assert json.loads(texts["json"]) == [{"a": 1, "b": None, "c": "x"}]
    assert list(csv.reader(io.StringIO(texts["csv"]))) == [["a", "b", "c"], ["1", "", "x"]]
    assert texts["line"] == "a = 1\nb = -\nc = x\n"


def test_sql_can_be_read_from_standard_input(state: Path) -> None:
    assert run("query", "-", "--format", "csv", "--state-dir", str(state), stdin="SELECT 7 AS n\n").stdout == "n\n7\n"


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("given", ["argument", "input", "shell"])
def test_bytes_of_a_statement_that_are_not_utf8_are_those_of_the_host(state: Path, given: str) -> None:
    sql = b"SELECT unicode('\xff') AS code"
    command = [*PROGRAM, "shell" if given == "shell" else "query", "--state-dir", str(state), "-f", "csv"]
    arguments = {"argument": [sql], "input": ["-"], "shell": []}[given]
    done = subprocess.run(
        [*command, *arguments], input=sql, capture_output=True, env=environment(), timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (f"code\n{0xEFFF}\n".encode(), 0), done.stderr


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("0", ["shell"]), ("0", ["query", "-"]), ("1", ["query", "SELECT 1"]), ("1", ["tables"]), ("2", ["query", "x"])],
)
def test_closed_standard_streams_cause_no_traceback(state: Path, closed: str, arguments: Sequence[str]) -> None:
    close = f"import os, sys; os.close({closed}); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", close, *PROGRAM, *arguments, "--state-dir", str(state)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == ("x" in arguments or "-" in arguments)
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_any_character_can_be_written_with_any_locale(state: Path) -> None:
    command = [*PROGRAM, "query", "SELECT char(233, 8364) AS name", "-f", "json", "--state-dir", str(state)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        timeout=60,
        check=False,
    )
    assert (done.stdout.decode(), done.returncode) == ('[{"name":"é€"}]\n', 0), done.stderr


def test_an_sql_error_is_one_line_and_exit_code_1(state: Path) -> None:
    assert "no such table" in complaint(run("query", "SELECT * FROM nonsense", "--state-dir", str(state)), 1)
    assert "syntax error" in complaint(run("query", "SELEC 1", "--state-dir", str(state)), 1)


@pytest.mark.long
def test_limits_and_access_rules_hold_for_local_queries_too(state: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    slow = run("query", endless, "--set", "limits.time=0.2", "--state-dir", str(state))
    assert "longer than 0.2 s" in complaint(slow, 1)
    denied = run("query", "SELECT * FROM users", "--set", "access.tables_deny=users", "--state-dir", str(state))
    assert "users" in complaint(denied, 1)


@pytest.mark.long
def test_a_reader_that_closes_the_pipe_causes_no_error_message(state: Path) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT i FROM n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started("query", sql, "--state-dir", str(state), **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        assert process.stderr.read() == ""


def test_the_shell_takes_a_script_from_a_pipe(state: Path) -> None:
    script = ".mode csv\nSELECT 1 AS a,\n 2 AS b;\nSELECT nonsense;\nSELECT 3 AS c"
    done = run("shell", "--state-dir", str(state), stdin=script)
    assert done.stdout == "a,b\n1,2\nc\n3\n"
    note, error = done.stderr.splitlines()
    assert note.startswith("note: no agent is running: ")
    assert error == "error: no such column: nonsense"
    assert done.returncode == 1


@pytest.mark.long
def test_repeated_queries_work_without_an_agent(state: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started("shell", "--state-dir", str(state), "--format", "csv", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(".snapshots 0.1 SELECT 5 AS n\n")
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(4)] == ["n\n", "5\n"] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.long
def test_tables_lists_describes_and_writes_zeek_records(state: Path) -> None:
    place = ("--state-dir", str(state))
    listed = run("tables", *place).stdout
    assert re.search(r"^processes_events +events: ", listed, re.MULTILINE)
    described = run("tables", "users", *place).stdout
    assert described.startswith("users: ")
    assert "SELECT" in described
    assert run("tables", "users", "--zeek", *place).stdout.startswith("## ")
    records = run("tables", "--zeek", *place).stdout
    assert "type ProcessesEvents: record {\n" in records


def test_status_reports_that_no_agent_is_running(state: Path) -> None:
    assert "no agent is running" in complaint(run("status", "--state-dir", str(state)), 1)


def test_doctor_reports_findings_and_advice(state: Path) -> None:
    done = run("doctor", "--format", "json", "--state-dir", str(state))
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks.keys() >= {"python", "configuration", "state directory", "agent", "privileges", "kernel", "cgroup v2"}
    assert checks["agent"]["found"].startswith("no agent is running")
    assert all(check["verdict"] in ("ok", "warn", "fail") for check in checks.values())
    assert done.returncode == 0
    assert run("doctor", "--state-dir", str(state)).stdout.count("\n") >= len(checks)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="eBPF is Linux's")
def test_doctor_finds_the_bpf_objects_that_are_built(state: Path) -> None:
    built = sorted(path.name for path in Path(bpf.__file__).parent.glob("*.bpf.o"))
    done = run("doctor", "--format", "json", "--state-dir", str(state))
    (check,) = [check for check in json.loads(done.stdout) if check["name"] == "BPF objects"]
    assert check["found"] == (", ".join(built) or "none are built")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's events are Linux's")
def test_doctor_names_the_one_source_of_each_kind_that_will_be_used(state: Path) -> None:
    done = run("doctor", "--format", "json", "--state-dir", str(state), "--set", "sources.sockets=snapshots")
    found = [check["found"] for check in json.loads(done.stdout) if check["name"] == "events"]
    assert "sockets by snapshots: will be used" in found
    assert len([line for line in found if line.startswith("processes by ") and ": will be used" in line]) == 1


@pytest.mark.long
def test_doctor_fails_if_zeek_is_unreachable(state: Path) -> None:
    done = run("doctor", "--zeek", "127.0.0.1:1", "--format", "json", "--state-dir", str(state))
    (zeek,) = [check for check in json.loads(done.stdout) if check["name"] == "zeek"]
    assert zeek["verdict"] == "fail"
    assert "127.0.0.1:1" in zeek["found"]
    assert done.returncode == 1


@pytest.fixture
def later_store(state: Path) -> Path:
    """The event store of an agent of a later version."""
    path = state / "events.db"
    EventStore(path, []).close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE _store SET written_by = '9.8.7'")
    connection.pragma("user_version", 99)
    connection.close()
    return path


@pytest.mark.long
def test_an_agent_refuses_the_store_of_a_later_one_and_does_not_change_it(later_store: Path, state: Path) -> None:
    before = later_store.read_bytes()
    refused = complaint(run("run", "--state-dir", str(state), "--set", "collector.listen=127.0.0.1:0"), 1)
    assert f"the event store {later_store} was written by zeek-agent 9.8.7 (store version 99, " in refused
    assert "run that version or a later one" in refused
    assert later_store.read_bytes() == before
    assert not list(state.glob("*.damaged*"))

    done = run("doctor", "--format", "json", "--state-dir", str(state))
    (check,) = [check for check in json.loads(done.stdout) if check["name"] == "event store"]
    assert (done.returncode, check["verdict"]) == (1, "fail")
    assert "was written by zeek-agent 9.8.7" in check["found"]

    asked = run("query", "SELECT count(*) FROM processes_events", "--format", "csv", "--state-dir", str(state))
    assert asked.returncode == 0
    assert asked.stdout.splitlines()[1:] == ["0"]
    warning, note = asked.stderr.splitlines()
    assert "was written by zeek-agent 9.8.7" in warning
    assert note == no_agent(state, f"no events are readable in {state}").rstrip()
    assert later_store.read_bytes() == before


@pytest.mark.long
async def test_doctor_explains_a_zeek_that_does_not_acknowledge(state: Path) -> None:
    async with zeek_server(ack=None) as zeek:
        flags = ("--zeek", zeek.url(), "--set", "zeek.ack_timeout=0.2", "--state-dir", str(state))
        done = await asyncio.to_thread(run, "doctor", "--format", "json", *flags)
    (check,) = [check for check in json.loads(done.stdout) if check["name"] == "zeek"]
    assert check["verdict"] == "fail"
    assert check["found"].startswith(f"Zeek at {zeek.url()}")
    assert "did not acknowledge the subscription within 0.2 s" in check["found"]


def test_config_check_prints_differing_settings_and_their_origin(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[limits]\ntime = 3\n")
    done = run("config", "check", "--config", str(file), env=environment(ZEEK_AGENT_ZEEK="zeek"))
    assert done.returncode == 0
    assert f"the configuration is valid ({file})" in done.stdout
    assert f"limits.time = 3.0    from {file}, default 10.0" in done.stdout
    assert "from environment ZEEK_AGENT_ZEEK, default []" in done.stdout
    file.write_text("[limits]\ntme = 3\n")
    assert f"{file}: unknown key limits.tme; did you mean limits.time?" in complaint(
        run("config", "check", "--config", str(file)), 2
    )


def test_config_check_reports_all_errors_and_warnings(tmp_path: Path) -> None:
    pack = tmp_path / "pack.toml"
    pack.write_text(
        '[logs.a]\nfields = [{ name = "gid", type = "string" }]\n'
        '[[queries]]\nlog = "a"\nsql = "SELECT gid FROM users"\n[[queries]]\nlog = "a"\nsql = "SELECT x FROM jkxq"\n'
    )
    done = run("config", "check", "--set", "limits.tme=3", "--set", "x", "--set", f"collector.pack={pack}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "zeek-agent: --set x: expected KEY=VALUE",
        "zeek-agent: command line: unknown key limits.tme; did you mean limits.time?",
        f"zeek-agent: {pack}: queries[0]: field gid of log a is of type string, but gid is count",
        f"zeek-agent: {pack}: queries[1].sql: no such table: jkxq (if agents have it, for instance from osquery, add "
        "it to requires_tables)",
    ]
    pack.write_text(pack.read_text().replace('"string"', '"count"'))
    done = run("config", "check", "--set", f"collector.pack={pack}")
    assert done.returncode == 0
    assert "the configuration is valid" in done.stdout
    assert "no such table: jkxq" in done.stderr


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("name", ["paths_allow", "paths_deny", "files_allow"])
def test_rules_on_paths_that_can_match_none_are_errors(name: str) -> None:
    done = run("config", "check", "--set", f'access.{name}=["/etc/a", "**/b", "!/c", "etc/d", "!~/e", "", "*.f"]')
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"zeek-agent: access.{name}: 'etc/d' matches no path; it has to begin with / or **",
        f"zeek-agent: access.{name}: '!~/e' matches no path; ~ is not expanded: write the directory",
        f"zeek-agent: access.{name}: '' matches no path; it has to begin with / or **",
        f"zeek-agent: access.{name}: '*.f' matches no path; it has to begin with / or **",
    ]


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("rule", "cause"),
    [("/etc/{a,b}", "braces"), ("/$HOME/x", "variables"), ("/a/x ", "blank"), ("/a\\\\*", "backslash")],
)
def test_rules_on_paths_that_mean_something_else_are_warnings(rule: str, cause: str) -> None:
    done = run("config", "check", "--set", f'access.paths_deny=["{rule}"]')
    assert done.returncode == 0
    assert cause in done.stderr


def test_a_table_is_suggested_for_a_rule_only_if_it_is_similar() -> None:
    rules = ['access.tables_deny=["nosuchthing", "procesess"]', "osquery.socket=off"]
    done = run("config", "check", "--set", rules[0], "--set", rules[1])
    assert done.stderr.splitlines() == [
        "zeek-agent: access.tables_deny: there is no table 'nosuchthing'; `zeek-agent tables` lists the tables",
        "zeek-agent: access.tables_deny: there is no table 'procesess'; did you mean 'processes'?; `zeek-agent tables` "
        "lists the tables",
    ]


WITH_FORMER_NAME = [sys.executable, "-c", """
import functools, sys
from zeek_agent.config import loading
from zeek_agent.cli import program
loading.load = functools.partial(loading.load, renamed={"limits.seconds": "limits.time"})
sys.exit(program.run_command(sys.argv[1:]))
"""]  # fmt: skip
"""The program, as if a setting had another name before."""


def test_config_check_names_the_present_name_of_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[limits]\nseconds = 3\n")
    command = [*WITH_FORMER_NAME, "config", "check", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0
    assert done.stderr == f"zeek-agent: {file}: limits.seconds is deprecated, use its new name limits.time\n"
    assert f"limits.time = 3.0    from {file} as limits.seconds, default 10.0" in done.stdout


def ending(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    return process.wait(20)


@pytest.mark.long(kept=1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_collector_runs_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    logs = tmp_path / "logs"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started("collector", "--listen", "127.0.0.1:0", "--logs", str(logs), **pipes) as process:
        assert process.stderr is not None
        assert "listening on 127.0.0.1" in process.stderr.readline()
        assert ending(process, number) == 0
        assert "Traceback" not in process.stderr.read()


@contextmanager
def running(
    *arguments: str, log: Path, state: Path, program: Sequence[str] = PROGRAM
) -> Iterator[subprocess.Popen[str]]:
    """An agent, from when its control socket is there."""
    streams = {"stdout": subprocess.DEVNULL}
    with log.open("w") as out, started(*arguments, program=program, stderr=out, **streams) as process:
        until_sync(lambda: (state / "zeek-agent.sock").exists() or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        yield process


@pytest.mark.long
def test_an_agent_logs_the_present_name_of_a_setting(tmp_path: Path, state: Path) -> None:
    place = ("--state-dir", str(state), "--logs", str(tmp_path / "logs"), "--set", "collector.listen=127.0.0.1:0")
    flags = (*place, "--set", "limits.seconds=3")
    with running("run", *flags, log=tmp_path / "agent.log", state=state, program=WITH_FORMER_NAME):
        sql = "SELECT message FROM zeek_agent_log WHERE level = 'warning' AND component = 'zeek_agent.config.loading'"
        warned = run("query", sql, "--format", "csv", "--state-dir", str(state)).stdout.splitlines()[1:]
    assert warned == ['"command line: limits.seconds is deprecated, use its new name limits.time"']


@pytest.mark.long
def test_an_agent_runs_without_a_writable_state_directory(tmp_path: Path) -> None:
    place = ("--state-dir", "/proc/nowhere", "--logs", str(tmp_path / "logs"))
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started("run", *place, **pipes) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("cannot store the agent id" in line for line in lines)
        assert any("events are kept in memory only" in line for line in lines)
        assert any("cannot create the control socket /proc/nowhere/zeek-agent.sock" in line for line in lines)
        assert any(": join" in line for line in lines)
        assert ending(process, signal.SIGTERM) == 0


@pytest.mark.long(kept=1)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("query", "SELECT 1"), ("tables",), ("doctor",), ("config", "check")])
def test_output_that_cannot_be_written_is_one_line(state: Path, arguments: Sequence[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*PROGRAM, *arguments, "--state-dir", str(state)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "zeek-agent: standard output: No space left on device\n"


@pytest.mark.long
async def test_an_agent_serves_several_zeeks_at_once(state: Path) -> None:
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    async with zeek_server() as one, zeek_server() as other:
        urls = ("--zeek", one.url(), "--zeek", other.url())
        with started("run", *urls, "--state-dir", str(state), **pipes) as process:
            clients = [await one.client(), await other.client()]
            hellos = [await client.expect(AgentHello) for client in clients]
            assert hellos[0].context.agent_id == hellos[1].context.agent_id
            await clients[1].install("q1", Query('SELECT 42 AS "n:count"', "Test::row"))
            row = await clients[1].expect(ResultRow)
            assert row.context.query_id == "q1"
            assert clients[0].of(ResultRow) == []
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0


def test_errors_in_the_pack_are_reported_before_anything_starts(state: Path) -> None:
    assert "cannot read the query pack /nowhere" in complaint(
        run("run", "--pack", "/nowhere", "--state-dir", str(state)), 2
    )


@contextmanager
def running_in(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A running agent with its embedded collector."""
    state = directory / "state"
    place = ("--state-dir", str(state), "--logs", str(directory / "logs"))
    with running("run", *place, log=directory / "agent.log", state=state) as process:
        yield process


@dataclass(frozen=True)
class Shared:
    process: subprocess.Popen[str]
    state: Path


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """An agent for all tests that leave it as it is."""
    directory = tmp_path_factory.mktemp("shared")
    with running_in(directory) as process:
        yield Shared(process, directory / "state")


def test_commands_reach_a_running_agent(agent: Shared) -> None:
    place = ("--state-dir", str(agent.state))
    status = json.loads(run("status", "--format", "json", *place).stdout)
    assert status["pid"] == agent.process.pid
    [host] = until_sync(lambda: json.loads(run("hosts", "--format", "json", *place).stdout or "[]"), 30)
    assert (host["id"], host["state"]) == (status["id"], "connected"), "those of its embedded collector"
    sql = "SELECT id, instance FROM zeek_agent"
    (row,) = json.loads(run("query", sql, "--format", "json", *place).stdout)
    assert row == {"id": status["id"], "instance": status["instance"]}
    assert f"pid {agent.process.pid}" in run("doctor", *place).stdout
    assert "connections" in run("status", *place).stdout
    assert "processes" in run("tables", *place).stdout
    assert "no such table" in complaint(run("query", "SELECT * FROM nonsense", *place), 1)


def test_the_shell_shows_differences_from_a_running_agent(agent: Shared, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started("shell", "--state-dir", str(agent.state), **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f".diffs 0.1 SELECT path FROM files_list('{watched}/*')\n")
        process.stdin.flush()
        (watched / "before").touch()
        for number in range(300):
            (watched / str(number)).touch()
            if select.select([process.stdout], [], [], 0.2)[0]:
                break
        assert re.fullmatch(r"-- \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", process.stdout.readline())
        assert process.stdout.readline().strip() == "path"
        assert process.stdout.readline().strip("-\n ") == ""
        assert process.stdout.readline().startswith(f"+ {watched}/")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert agent.process.poll() is None


@pytest.mark.long
@pytest.mark.root
def test_the_configured_group_may_query_the_agent(tmp_path: Path, state: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o011)
    group = grp.getgrgid(NOBODY).gr_name
    place = ("--state-dir", str(state), "--logs", str(tmp_path / "logs"))
    with running("run", *place, "--set", f"control.group={group}", log=tmp_path / "agent.log", state=state):
        with acting_as(NOBODY, NOBODY):
            assert ask_agent(state) == "0"
        with acting_as(NOBODY, NOBODY - 1):
            assert "not permitted to use" in ask_agent(state)


def ask_agent(state: Path) -> str:
    """The user id that the agent gives its first process, or why it does not say."""
    config, _ = load(None, {}, {"state_dir": str(state)})
    try:
        asked = responders.connect(config)
        _, rows, _ = responders.query(asked, "SELECT uid FROM processes WHERE pid = 1")
        asked.close()
        return str(rows[0][0])
    except ZeekAgentError as error:
        return str(error)


def test_a_second_agent_is_refused_with_the_holders_name(agent: Shared) -> None:
    refused = run("run", "--state-dir", str(agent.state))
    assert f"another agent (pid {agent.process.pid}, since " in complaint(refused, 1)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_the_agent_down_in_order(tmp_path: Path, state: Path, number: signal.Signals) -> None:
    with running_in(tmp_path) as process:
        assert ending(process, number) == 0
    assert not (state / "zeek-agent.sock").exists()
    assert "Traceback" not in (tmp_path / "agent.log").read_text()
    kept = run("query", "SELECT count(*) AS n FROM processes_events", "--format", "csv", "--state-dir", str(state))
    assert kept.stdout.startswith("n\n"), kept
