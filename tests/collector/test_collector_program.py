"""`zeek-agent collector` as a program: errors at the start, SIGHUP, and `zeek-agent hosts` next to it."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Files, make_certificates
from collector_program import LightAgent, collector, command
from waiting import until, until_sync
from zeek_log import parse_header, parse_log

from zeek_agent.collector import hosts_file
from zeek_agent.config.sections import TlsSettings
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.tls import client_context

PACK = """
[logs.things]
fields = [{ name = "name", type = "string" }]

[[queries]]
log = "things"
sql = "SELECT name FROM things"

[[queries]]
log = "things"
sql = "SELECT name FROM other_things"
"""
OTHER_PACK = """
[logs.things]
fields = [{ name = "name", type = "string" }, { name = "size", type = "count" }]

[[queries]]
log = "things"
sql = "SELECT name FROM other_things"

[[queries]]
log = "things"
sql = "SELECT name, size FROM things"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    made.make("renewed", "subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE")
    made.make_expired("expired")
    return made


def listed(logs: Path, *options: str) -> list[dict[str, Any]]:
    done = command("hosts", "--logs", str(logs), "--format", "json", *options)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def wait_until_connected(logs: Path, number: int) -> None:
    def is_reached() -> bool:
        known = hosts_file.read(logs).hosts.values() if logs.exists() else ()
        return sum(host.state == "connected" for host in known) == number

    until_sync(is_reached, 30)


@pytest.mark.long
def test_a_key_that_cannot_be_used_is_a_usage_error(tmp_path: Path, files: Files) -> None:
    server = files.path("server.pem")
    for options, words in (
        (("--certificate", server, "--key", "/nowhere/key.pem"), "collector.tls.key: cannot read /nowhere/key.pem"),
        (("--certificate", server, "--key", files.path("agent.key")), "the key is not that of the certificate"),
        (("--key", files.path("server.key")), "collector.tls.key needs a collector.tls.certificate"),
        (("--client-ca", files.ca), "collector.tls.client_ca needs a collector.tls.certificate"),
    ):
        done = command("collector", "--listen", "127.0.0.1:0", "--logs", str(tmp_path / "logs"), *options)
        assert done.returncode == 2
        assert done.stderr.startswith("zeek-agent: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


async def test_a_hangup_replaces_queries_and_leaves_the_others_alone(tmp_path: Path) -> None:
    pack = tmp_path / "pack.toml"
    pack.write_text(PACK)
    with collector(tmp_path, "--pack", str(pack)) as program:
        agent = LightAgent("HAbc")
        await agent.connect(program.port)
        reading = asyncio.create_task(read_for_ever(agent))
        await until(lambda: len(agent.queries) == 2)
        before = {query.query.sql: query_id for query_id, query in agent.queries.items()}
        await agent.row("Collector::things", broker_json.string("one"), change=Change.ADD)
        await agent.acknowledged()
        pack.write_text(OTHER_PACK)
        program.hang_up()
        expected = {"SELECT name FROM other_things", "SELECT name, size FROM things"}
        await until(lambda: {query.query.sql for query in agent.queries.values()} == expected)
        after = {query.query.sql: query_id for query_id, query in agent.queries.items()}
        assert after["SELECT name FROM other_things"] == before["SELECT name FROM other_things"]
        await agent.row("Collector::things", broker_json.string("two"), broker_json.count(2), change=Change.ADD)
        await agent.acknowledged()
        reading.cancel()
        await agent.close()
        assert program.stop() == 0
    written = sorted((tmp_path / "logs").glob("things*.log"))
    assert [parse_header(file.read_bytes())["#fields"][4:] for file in written] == [["name"], ["name", "size"]]
    assert [record[4:] for file in written for record in parse_log(file.read_bytes())] == [("one",), ("two", 2)]


async def read_for_ever(agent: LightAgent) -> None:
    while True:
        await agent.read()


@pytest.mark.long
def test_a_hangup_with_something_invalid_changes_nothing(tmp_path: Path, files: Files) -> None:
    pack, settings = tmp_path / "pack.toml", tmp_path / "settings.toml"
    key = tmp_path / "server.key"
    pack.write_text(PACK)
    key.write_bytes(Path(files.path("server.key")).read_bytes())
    valid = (
        f'[collector]\npack = "{pack}"\n[collector.tls]\ncertificate = "{files.path("server.pem")}"\nkey = "{key}"\n'
    )
    settings.write_text(valid)
    with collector(tmp_path, "--config", str(settings)) as program:
        ways: tuple[Callable[[], object], ...] = (
            lambda: settings.write_text("[collector]\nno_such_setting = 1\n"),
            lambda: pack.write_text("nonsense"),
            lambda: key.write_bytes(Path(files.path("agent.key")).read_bytes()),
            key.unlink,
            lambda: settings.write_text(f'[collector]\npack = "{pack}"\n'),
        )
        for refusals, break_it in enumerate(ways, start=1):
            break_it()
            program.hang_up()
            program.wait_for("the configuration is not reloaded", refusals)
            settings.write_text(valid)
            pack.write_text(PACK)
            key.write_bytes(Path(files.path("server.key")).read_bytes())
        assert "unknown key collector.no_such_setting" in program.text
        assert "the key is not that of the certificate" in program.text
        assert f"cannot read {key}" in program.text
        assert "TLS can only be switched on or off by a restart" in program.text
        program.hang_up()
        program.wait_for("configuration reloaded, nothing to apply")
        settings.write_text(f'{valid}[log]\nlevel = "debug"\n[metrics]\nlisten = "unix:{tmp_path}/metrics.sock"\n')
        program.hang_up()
        program.wait_for("applied: log.level, metrics.listen")
        assert (tmp_path / "metrics.sock").exists()
        settings.write_text(f"{valid.replace('[collector]', '[collector]' + chr(10) + 'rotate_bytes = 7', 1)}")
        program.hang_up()
        program.wait_for("needs a restart: collector.rotate_bytes")
        assert program.stop() == 0


@pytest.mark.long
async def test_a_hangup_loads_renewed_certificates_from_the_same_files(tmp_path: Path, files: Files) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    trusting = client_context(TlsSettings(files.ca, files.path("agent.pem"), files.path("agent.key")))

    def put(name: str) -> None:
        certificate.write_bytes(Path(files.path(f"{name}.pem")).read_bytes())
        key.write_bytes(Path(files.path(f"{name}.key")).read_bytes())

    async def shown() -> str:
        agent = LightAgent("HAbc")
        await agent.connect(program.port, trusting)
        subject = agent.connection.transport.get_extra_info("peercert")["subject"]
        await agent.close()
        return str(subject[0][0][1])

    put("server")
    options = ("--certificate", str(certificate), "--key", str(key), "--client-ca", files.ca)
    with collector(tmp_path, *options) as program:
        assert await shown() == "server"
        put("renewed")
        assert await shown() == "server"
        program.hang_up()
        await asyncio.to_thread(program.wait_for, "configuration reloaded")
        assert "certificates read again, for new connections" in program.text
        assert "agents will refuse" not in program.text
        assert await shown() == "renewed"
        put("expired")
        program.hang_up()
        await asyncio.to_thread(program.wait_for, "configuration reloaded", 2)
        assert f"agents will refuse the certificate in {certificate}: certificate has expired" in program.text


@pytest.mark.long
async def test_hosts_are_printed_while_a_collector_runs_and_while_none_does(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with collector(tmp_path) as program:
        one, two = LightAgent("HOne"), LightAgent("HTwo")
        await one.connect(program.port)
        await two.connect(program.port)
        await asyncio.to_thread(wait_until_connected, logs, 2)
        rows = await asyncio.to_thread(listed, logs)
        assert [(row["host"], row["id"], row["state"]) for row in rows] == [
            ("host-HOne", "HOne", "connected"),
            ("host-HTwo", "HTwo", "connected"),
        ]
        assert rows[0]["version"] == "3.0.0"
        assert rows[0]["address"] == "127.0.0.1"
        assert await asyncio.to_thread(listed, logs, "--offline") == []
        assert [row["id"] for row in await asyncio.to_thread(listed, logs, "--host", "*two")] == ["HTwo"]
        await two.close()
        await asyncio.to_thread(wait_until_connected, logs, 1)
        program.kill()
    done = await asyncio.to_thread(command, "hosts", "--logs", str(logs), "--format", "csv")
    assert done.returncode == 0
    assert [(row["id"], row["state"], row["since"]) for row in csv.DictReader(done.stdout.splitlines())] == [
        ("HOne", "unknown", ""),
        ("HTwo", "unknown", ""),
    ]
    assert "no collector is writing to" in done.stderr
    await one.close()


async def test_names_of_hosts_cannot_control_the_terminal(tmp_path: Path) -> None:
    logs, name = tmp_path / "logs", "\x1b[2J\u202eevil\n"
    with collector(tmp_path) as program:
        agent = LightAgent("HAbc", hostname=name)
        await agent.connect(program.port)
        await asyncio.to_thread(wait_until_connected, logs, 1)
        for mode in ("table", "line", "csv", "json"):
            done = await asyncio.to_thread(command, "hosts", "--logs", str(logs), "--format", mode)
            assert done.returncode == 0
            assert r"\x1b[2J\xe2\x80\xaeevil\x0a" in done.stdout.replace("\\\\", "\\")
            assert not {"\x1b", "\u202e"} & set(done.stdout)
        await agent.close()


def test_without_a_record_of_hosts_the_command_fails_with_advice(tmp_path: Path) -> None:
    for logs in (tmp_path, tmp_path / "missing"):
        done = command("hosts", "--logs", str(logs))
        assert (done.returncode, done.stdout) == (1, "")
        assert str(logs) in done.stderr
        assert "--logs" in done.stderr
        assert done.stderr.count("\n") == 1
