"""The Zeek package with a real Zeek: its own test suite, and with the real agent and real traffic.

Who is behind a connection is compared with what the traffic's generator says of itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT
from running_agent import AGENT_ID, RunningAgent, running
from waiting import until
from zeek_cluster import cluster, search_path
from zeek_program import PACKAGE, ROOT, ZEROMQ_PORTS, Zeek, free_port, joined, needs_zeek, records, tool, zeek

from zeek_agent import __version__
from zeek_agent.collector import pack_file

LOAD = SUPPORT / "connection_load.py"


async def clients(address: str, tcp: int, udp: int, rate: float) -> list[dict[str, Any]]:
    """Have clients come and go; the truth about them."""
    command = [sys.executable, str(LOAD), address, str(tcp), str(udp), str(rate)]
    load = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await load.communicate()
    assert load.returncode == 0
    truth = [json.loads(line) for line in output.splitlines()]
    times = Counter(map(key, truth))
    return [one for one in truth if times[key(one)] == 1]  # UDP ports that come twice are one connection to Zeek


def key(connection: Mapping[str, Any]) -> tuple[str, int, int]:
    return connection["proto"], connection["orig_p"], connection["resp_p"]


def key_of(line: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(line["proto"]), line["id.orig_p"], line["id.resp_p"]


def logged(directory: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """conn.log by protocol and ports."""
    return {key_of(line): line for line in records(directory / "conn.log")}


async def listed_open_connections(agent: RunningAgent) -> bool:
    """Whether Zeek's query for the connections that are open, which runs once, is over."""
    sql = "SELECT id FROM zeek_agent_queries WHERE sql LIKE '%FROM sockets %'"
    return not await agent.ask(sql)


async def claimed(agent: RunningAgent) -> None:
    """Wait until Zeek has got the claims on all that has happened until now."""
    queries = (
        "SELECT id, runs FROM zeek_agent_queries "
        "WHERE sql LIKE '%sockets_events%' AND schedule < 1 AND state <> 'waiting'"
    )
    before = {row["id"]: row["runs"] for row in await agent.ask(queries)}
    assert before

    async def have_run() -> bool:
        return all(row["runs"] >= before.get(row["id"], 0) + 2 for row in await agent.ask(queries))

    async def have_arrived() -> bool:
        return (await agent.connection())["unacknowledged_bytes"] == 0

    await until(have_run, 30, "the queries for claims do not run")
    await until(have_arrived, 30, "Zeek does not take what it is sent")
    await asyncio.sleep(0.5)  # what it has taken it works off


def accepts(url: str) -> bool:
    """Whether something listens at a URL."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


@dataclass
class Score:
    """Of the true connections: how many were logged, and tagged at both ends; those tagged with another process."""

    logged: int = 0
    tagged: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)


def compare(truth: list[dict[str, Any]], found: dict[tuple[str, int, int], dict[str, Any]]) -> Score:
    score = Score()
    for one in truth:
        line = found.get(key(one))
        if line is None:
            continue
        score.logged += 1
        pairs = [(line[end], one[end]) for end in ("orig_pid", "resp_pid")]
        score.tagged += all(tagged == true for tagged, true in pairs)
        if any(tagged not in (None, true) for tagged, true in pairs):
            score.wrong.append({"truth": one, "logged": line})
    return score


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; fails with that when the command fails."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@needs_zeek
@pytest.mark.timeout(320)
def test_the_packages_own_suite_passes() -> None:
    tool("btest")
    tool("zeek-cut")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Each run of btest takes its ports from the same range: as root, it gets a network of its own.
    alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh") if os.geteuid() == 0 else ()
    run(*alone, "btest", "-c", "btest.cfg", "-j", "2", cwd=ROOT / "zeek" / "testing", PATH=path)


@needs_zeek
def test_scripts_parse() -> None:
    run("zeek", "-a", str(PACKAGE))


@pytest.mark.long
def test_scripts_are_formatted(tmp_path: Path) -> None:
    tool("zeek-script")
    for part in ("scripts", "examples"):
        shutil.copytree(ROOT / "zeek" / part, tmp_path / part)
    run("zeek-script", "format", "-i", "-r", str(tmp_path))
    for formatted in tmp_path.rglob("*.zeek"):
        original = ROOT / "zeek" / formatted.relative_to(tmp_path)
        assert formatted.read_text() == original.read_text(), f"{original}: run zeek-script format -i"
        run("zeek-script", "parse", str(original))


def test_generated_scripts_and_documented_logs_are_up_to_date() -> None:
    run(sys.executable, "zeek/generate.py", "--check")
    run(sys.executable, "zeek/reference.py", "--check")


def package_logs() -> dict[str, Any]:
    """The logs that the package's scripts create, as zeek/reference.py reads them, by their names."""
    spec = importlib.util.spec_from_file_location("zeek_package_reference", ROOT / "zeek" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = reference
    spec.loader.exec_module(reference)
    return {log.path: log for log in reference.logs() if log.path.startswith("zeek-agent")}


def test_documented_fields_are_those_that_zeek_writes() -> None:
    written = ROOT / "zeek" / "testing" / "Baseline" / "tables.logs"
    tables = package_logs()
    assert set(tables) == {path.stem for path in written.glob("*.log")}
    for log in tables.values():
        lines = (written / f"{log.path}.log").read_text().splitlines()
        header = {line.split("\t")[0]: line.split("\t")[1:] for line in lines if line.startswith("#")}
        assert [field.name for field in log.fields] == header["#fields"], log.path
        types = [re.sub(r"^vector of (.*)$", r"vector[\1]", field.type) for field in log.fields]
        assert types == header["#types"], log.path


def test_scripts_written_by_hand_have_the_columns_of_the_default_pack() -> None:
    file, _ = pack_file.load()
    logs = package_logs()
    assert set(file.logs) == set(logs) - {"zeek-agent"}
    for path, entry in file.logs.items():
        leading = ["t", "hid", "host", *(["change"] if entry.change else [])]
        fields = [field for field in logs[path].fields if field.name not in leading and field.name != "store"]
        if entry.fields is not None:  # else they are what the query selects, and the script is generated
            assert [(field.name, field.type) for field in fields] == [
                (field.name, re.sub(r"^vector\[(.*)\]$", r"vector of \1", field.type))
                for field in entry.fields_for("zeek")
            ], path
        assert [field.name for field in logs[path].fields][: len(leading)] == leading


NEW_LOG = """
[logs.zeek-agent-group-members]
summary = "Groups and their number of members"

[[queries]]
log = "zeek-agent-group-members"
sql = '''SELECT gid, count(*) AS "users:count" FROM users GROUP BY gid'''
"""


SHOW_PATH = """
@load {package}
event zeek_init() &priority=-100
    {{
    print Log::get_filter(ZeekAgent_GroupMembers::LOG, "default")$path;
    terminate();
    }}
"""


@pytest.mark.long
@needs_zeek
def test_a_new_log_is_an_entry_in_the_default_pack_and_all_else_is_generated(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for part in ("src", "zeek", "docs", "packaging"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pcap", ".tmp")
        shutil.copytree(ROOT / part, tree / part, ignore=ignored)
    shutil.copy(ROOT / "README.md", tree)
    default = tree / "src" / "zeek_agent" / "collector" / "default.toml"
    before = contents(tree)
    default.write_text(default.read_text() + NEW_LOG)
    generators = (["-m", "zeek_agent.reference"], ["zeek/generate.py"], ["zeek/reference.py"])
    outside = {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    for stale in generators:
        done = subprocess.run([sys.executable, *stale, "--check"], cwd=tree, env={**os.environ, **outside}, check=False)
        assert done.returncode == (stale != ["zeek/reference.py"])
    for _ in range(2):
        for generator in generators:
            run(sys.executable, *generator, cwd=tree, **outside)
    for generator in generators:
        run(sys.executable, *generator, "--check", cwd=tree, **outside)
    after = contents(tree)
    assert {path for path in after if after[path] != before.get(path)} == {
        "docs/collector.md",
        "docs/zeek.md",
        "src/zeek_agent/collector/default.toml",
        "zeek/scripts/table/__load__.zeek",
        "zeek/scripts/table/group-members.zeek",
    }
    script = tmp_path / "paths.zeek"
    ports = ZEROMQ_PORTS.format(xpub=free_port(), xsub=free_port())
    script.write_text(SHOW_PATH.format(package=tree / "zeek" / "scripts") + ports)
    assert run("zeek", str(script), "ZeekAgent::listen=F", cwd=tmp_path) == "zeek-agent-group-members\n"
    default.write_bytes(before["src/zeek_agent/collector/default.toml"])
    for generator in generators:
        run(sys.executable, *generator, cwd=tree, **outside)
    assert contents(tree) == before


def contents(directory: Path) -> dict[str, bytes]:
    """The files of a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def zkg_configuration(directory: Path, state: Path) -> str:
    """A configuration of zkg with everything below the state's directory."""
    lines = [
        "[sources]",
        "[paths]",
        f"state_dir = {state}",
        f"script_dir = {state}/site",
        f"plugin_dir = {state}/plugins",
    ]
    configuration = directory / "config"
    configuration.write_text("\n".join([*lines, f"bin_dir = {state}/bin", "zeek_dist ="]))
    return str(configuration)


@needs_zeek
def test_the_package_takes_the_place_of_that_of_version_2(tmp_path: Path) -> None:
    """As docs/zeek.md says: zkg refuses it until the other one is removed; `@load zeek-agent-v2` then loads it."""
    tool("zkg")
    clone, old = tmp_path / "zeek-endpoints", tmp_path / "zeek-agent-v2"
    run("git", "clone", "--quiet", str(ROOT), str(clone))
    (old / "scripts").mkdir(parents=True)
    (old / "zkg.meta").write_text("[package]\nscript_dir = scripts\n")
    (old / "scripts" / "__load__.zeek").write_text(
        "module ZeekAgent;\nexport { type Context: record { a: count; }; }\n"
    )
    who = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    for command in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message=a")):
        run("git", *command, cwd=old)
    state = tmp_path / "zkg"
    zkg = ("zkg", "--configfile", zkg_configuration(tmp_path, state))
    run(*zkg, "install", "--force", "--skiptests", str(old))
    install = (*zkg, "install", "--force", "--skiptests", str(clone))
    refused = subprocess.run(install, check=False, capture_output=True, text=True)
    assert "conflicts with name of installed package" in refused.stdout + refused.stderr
    run(*zkg, "remove", "--force", "zeek-agent-v2")
    run(*install)
    script = tmp_path / "site.zeek"
    script.write_text('@load packages\n@load zeek-agent-v2\nredef ZeekAgent_Files::paths_to_watch += { "/etc/x" };\n')
    run("zeek", "-a", str(script), ZEEKPATH=f"{state}/site:{search_path()}")


@pytest.mark.long
@needs_zeek
def test_zkg_installs_the_package_from_a_clone(tmp_path: Path) -> None:
    tool("zkg")
    clone = tmp_path / "zeek-endpoints"
    run("git", "clone", "--quiet", str(ROOT), str(clone))
    state = tmp_path / "zkg"
    configuration = zkg_configuration(tmp_path, state)
    run("zkg", "--configfile", configuration, "install", "--force", "--skiptests", str(clone))
    for name in ("packages", "zeek-agent", "zeek-agent-v2"):
        run("zeek", "-a", name, ZEEKPATH=f"{state}/site:{search_path()}")
    assert (state / "site" / "packages" / clone.name / "version.dat").read_text() == f"{__version__}\n"


LOCAL = f'redef ZeekAgent::local_agents = {{ "{AGENT_ID}" }};'


@needs_zeek
@pytest.mark.root
@pytest.mark.parametrize(
    ("address", "tcp", "udp"),
    [("127.7.7.7", 200, 200), ("::1", 50, 50), pytest.param("127.7.7.7", 1000, 1000, marks=pytest.mark.soak)],
)
async def test_connections_of_short_lived_processes_are_attributed_at_both_ends(
    tmp_path: Path, address: str, tcp: int, udp: int
) -> None:
    logs = tmp_path / "zeek"
    capture = ("-i", "lo", "-f", f"host {address}")
    with zeek(logs, *capture, site=LOCAL) as url:
        async with running(tmp_path, f"--zeek={url}") as agent:
            await joined(logs)
            truth = await clients(address, tcp, udp, 150)
            await claimed(agent)
    score = compare(truth, logged(logs))
    assert score.logged == len(truth) >= 0.99 * (tcp + udp)
    assert not score.wrong
    assert score.tagged >= 0.999 * score.logged
    lines = [line for (protocol, _, _), line in logged(logs).items() if protocol == "tcp"]
    counted = [line for line in lines if line["orig_host_sent"] is not None and line["resp_host_sent"] is not None]
    assert len(counted) >= 0.99 * len(lines)
    for line in counted:
        assert (line["orig_host_sent"], line["resp_host_received"]) == (line["orig_bytes"], line["orig_bytes"])
        assert (line["resp_host_sent"], line["orig_host_received"]) == (line["resp_bytes"], line["resp_bytes"])


ASK_FROM_WORKER = """
module Probe;
export {
    redef enum Log::ID += { LOG };
    type Row: record { name: string &log &optional; };
    type Info: record { node: string &log; kind: string &log; name: string &log &optional; };
}
global asked = F;
event Probe::row(ctx: ZeekAgent::Context, columns: Row)
    {
    Log::write(LOG, Info($node=Cluster::node, $kind="row", $name=columns$name));
    }
event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
    {
    if ( asked )
        return;
    asked = T;
    Log::write(LOG, Info($node=Cluster::node, $kind="asked"));
    ZeekAgent::query([$sql_stmt="SELECT name FROM users WHERE uid = '0'", $event_=Probe::row], ZeekAgent::Host,
                     process$hid);
    }
event zeek_init() { Log::create_stream(LOG, Log::Stream($columns=Info, $path="probe")); }
"""


@pytest.mark.long
@needs_zeek
@pytest.mark.root
@pytest.mark.timeout(180)
async def test_a_cluster_attributes_on_its_workers_and_logs_nothing_twice(tmp_path: Path) -> None:
    filters = {"worker-1": "host 127.7.7.8 and tcp", "worker-2": "host 127.7.7.8 and udp"}
    with cluster(tmp_path / "cluster", LOCAL + ASK_FROM_WORKER, filters) as nodes:
        await until(lambda: accepts(nodes.url), 30, "the manager does not listen")
        async with running(tmp_path, f"--zeek={nodes.url}") as agent:
            await until(lambda: any(records(nodes.log("zeek-agent"))), 30, "no agent joins")
            await asyncio.sleep(3)
            truth = await clients("127.7.7.8", 200, 200, 150)

            # A worker that comes back is told of what was there before.
            with (
                socket.create_server(("127.7.7.8", 0)) as server,
                socket.create_connection(server.getsockname()) as old,
            ):
                peer, _ = server.accept()
                await asyncio.sleep(1)
                nodes.stop("worker-1", signal.SIGKILL)
                nodes.start("worker-1")
                await asyncio.sleep(8)
                for _ in range(3):
                    old.send(b"still here")
                    peer.recv(64)
                existing = ("tcp", old.getsockname()[1], server.getsockname()[1])
                peer.close()
            truth += await clients("127.7.7.8", 100, 100, 150)
            await claimed(agent)
            await asyncio.sleep(2)  # by way of the manager

    lines = records(nodes.log("conn"))
    found = {key_of(line): line for line in lines}
    score = compare(truth, found)
    unlogged = len(truth) - score.logged  # what the killed worker had not logged yet
    assert not score.wrong
    assert score.tagged == score.logged
    assert unlogged <= 200
    assert len(lines) == len(found), "a connection is logged twice"
    assert found[existing]["orig_pid"] == os.getpid() == found[existing]["resp_pid"]

    assert [one["type_"] for one in records(nodes.log("zeek-agent"))].count("join") == 1
    probe = records(nodes.log("probe"))
    asked = [one["node"] for one in probe if one["kind"] == "asked"]
    assert set(asked) == {"worker-1", "worker-2"}
    rows = [(one["node"], one["name"]) for one in probe if one["kind"] == "row"]
    assert rows == [("manager", "root")] * len(asked)
    for path in ("zeek-agent-socket-events", "zeek-agent-process-events"):
        numbers = [(one["store"], one["seq"]) for one in records(nodes.log(path))]
        assert numbers
        assert len(set(numbers)) == len(numbers), f"{path}.log has events twice"


@pytest.mark.long
@needs_zeek
@pytest.mark.root
async def test_connections_that_were_open_before_the_agent_are_attributed(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with (
        zeek(logs, "-i", "lo", "-f", "host 127.7.7.9", site=LOCAL) as url,
        socket.create_server(("127.7.7.9", 0)) as server,
    ):
        await until(lambda: accepts(url), 30, "Zeek does not listen")
        with socket.create_connection(server.getsockname()) as client:
            peer, _ = server.accept()
            ends = ("tcp", client.getsockname()[1], server.getsockname()[1])
            async with running(tmp_path, f"--zeek={url}") as agent:
                await joined(logs)
                await claimed(agent)  # all queries are installed then
                await until(lambda: listed_open_connections(agent), 30, "open connections are not listed")
                await claimed(agent)
            client.sendall(b"ping")
            peer.close()
            await asyncio.sleep(2)
    line = logged(logs)[ends]
    assert (line["orig_pid"], line["resp_pid"]) == (os.getpid(), os.getpid())
    assert line["orig_hid"] == AGENT_ID
    assert line["orig_user"] == "root"


ASK = """
module Ask;
export {
    redef enum Log::ID += { LOG };
    type Row: record { name: string &optional; };
    type Info: record { question: string &log; answer: string &log; };
}
type Rows: vector of Row;
function log_answer(question: string, answer: ZeekAgent::Answer)
    {
    local text = answer?$error ? answer$error : "";
    if ( answer?$rows )
        for ( _, row in answer$rows as Rows )
            text += row$name;
    Log::write(LOG, Info($question=question, $answer=text));
    }
event ZeekAgent::agent_joined(id: string, hello: ZeekAgentAPI::AgentHelloV1)
    {
    when [id] ( local some = ZeekAgent::ask(id, "SELECT name FROM users WHERE uid = '0'", Rows) )
        { log_answer("some", some); }
    when [id] ( local none = ZeekAgent::ask(id, "SELECT name FROM users WHERE uid = 'x'", Rows) )
        { log_answer("none", none); }
    when [id] ( local wrong = ZeekAgent::ask(id, "SELECT name FROM nowhere", Rows) )
        { log_answer("wrong", wrong); }
    }
event zeek_init() { Log::create_stream(LOG, Log::Stream($columns=Info, $path="ask")); }
"""


@needs_zeek
async def test_a_script_queries_an_agent_and_gets_rows_no_rows_or_an_error(tmp_path: Path) -> None:
    logs = tmp_path / "zeek"
    with zeek(logs, site=ASK) as url:
        async with running(tmp_path, f"--zeek={url}"):
            await until(lambda: len(records(logs / "ask.log")) == 3, complaint="not all questions are answered")
    answers = {one["question"]: one["answer"] for one in records(logs / "ask.log")}
    assert (answers["some"], answers["none"]) == ("root", "")
    assert "no such table: nowhere" in answers["wrong"]


@needs_zeek
@pytest.mark.root
async def test_a_program_that_was_downloaded_is_noticed_when_it_is_executed(tmp_path: Path) -> None:
    logs, served, program = tmp_path / "zeek", tmp_path / "served", tmp_path / "program"
    logs.mkdir()
    served.mkdir()
    (logs / "zeek-agent").symlink_to(PACKAGE)
    content = Path("/bin/sleep").read_bytes() + os.urandom(1024)
    (served / "installer.bin").write_bytes(content)
    (served / "other.bin").write_bytes(content + b"other")
    server = ThreadingHTTPServer(("127.7.7.11", 0), partial(SilentHandler, directory=str(served)))
    # Packets on loopback are larger than those of networks.
    site = f"@load {ROOT}/zeek/examples/download-then-execute.zeek\nredef Pcap::snaplen = 262144;"
    with zeek(logs, "-i", "lo", "-f", "host 127.7.7.11", site=site) as url, serving(server):
        async with running(tmp_path, f"--zeek={url}"):
            await joined(logs)
            for name in ("other.bin", "installer.bin"):
                with socket.create_connection(("127.7.7.11", server.server_port)) as client:
                    client.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
                    reply = b"".join(iter(partial(client.recv, 65536), b""))
                program.write_bytes(reply.partition(b"\r\n\r\n")[2])
            program.chmod(0o755)
            await until(lambda: len(records(logs / "files.log")) == 2, complaint="the files are not seen on the wire")
            subprocess.run([str(program), "0.1"], check=True)
            notices = await until(lambda: records(logs / "notice.log"), complaint="no notice")
    (notice,) = notices
    assert notice["note"] == "DownloadThenExecute::Executed_Download"
    assert notice["sub"] == hashlib.sha256(content).hexdigest()
    assert f"{program} was executed" in notice["msg"]


LISTEN_ELSEWHERE = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
sys.stdout.write("listening\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@needs_zeek
@pytest.mark.root
async def test_known_services_name_the_listener_of_the_hosts_own_namespace(tmp_path: Path) -> None:
    """And not the one at the same port in another namespace, as in a container, which ends first."""
    logs = tmp_path / "zeek"
    server = ThreadingHTTPServer(("127.7.7.13", 0), partial(SilentHandler, directory=str(tmp_path)))
    command = ("unshare", "--net", sys.executable, "-c", LISTEN_ELSEWHERE, str(server.server_port))
    site = f"@load {PACKAGE}/attribution/known-services.zeek\nredef Known::service_tracking = ALL_HOSTS;\n{LOCAL}"
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert await other.stdout.readline() == b"listening\n"
        with zeek(logs, "-i", "lo", "-f", "host 127.7.7.13", site=site) as url, serving(server):
            async with running(tmp_path, f"--zeek={url}") as agent:
                await joined(logs)
                once = "SELECT id FROM zeek_agent_queries WHERE sql LIKE '%own_netns%' AND schedule IS NULL"
                runs = "SELECT runs FROM zeek_agent_queries WHERE sql LIKE '%own_netns%' AND schedule > 0"

                async def were_listed() -> bool:
                    return not await agent.ask(once)

                async def are_listed_again() -> bool:
                    return (await agent.ask(runs))[0]["runs"] > before

                await until(were_listed, 30, "the listening ports are not asked for")
                before = (await agent.ask(runs))[0]["runs"]
                other.stdin.close()
                await other.wait()
                await until(are_listed_again, 30, "the listening ports are not asked for again")
                await claimed(agent)
                with socket.create_connection(("127.7.7.13", server.server_port)) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert client.recv(65536)
                services = await until(lambda: records(logs / "known_services.log"), 30, "no service is logged")
    finally:
        if other.returncode is None:
            other.kill()
            await other.wait()
    (service,) = services
    assert (service["host"], service["port_num"]) == ("127.7.7.13", server.server_port)
    assert (service["hid"], service["pid"]) == (AGENT_ID, os.getpid())


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


SPAWN = """
import os, sys, time
rate, seconds = float(sys.argv[1]), float(sys.argv[2])
started = time.monotonic()
number = 0
while (now := time.monotonic() - started) < seconds:
    while number < now * rate:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        number += 1
    time.sleep(0.005)
"""


@pytest.mark.long
@needs_zeek
@pytest.mark.root
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.soak)])
async def test_every_event_is_logged_though_zeek_is_killed_and_the_agent_restarted(
    tmp_path: Path, seconds: int
) -> None:
    """About a thousand events a second."""
    lives = [tmp_path / f"zeek-{number}" for number in range(3)]
    one = Zeek()
    one.start(lives[0])
    load = None
    try:
        async with running(tmp_path, f"--zeek={one.url}") as agent:
            await joined(lives[0])
            load = await asyncio.create_subprocess_exec(sys.executable, "-c", SPAWN, "500", str(seconds))
            await asyncio.sleep(seconds / 4)
            one.stop(signal.SIGKILL)
            await asyncio.sleep(1)
            one.start(lives[1])
            await asyncio.sleep(seconds / 4)
            await asyncio.to_thread(agent.stop)
        async with running(tmp_path, f"--zeek={one.url}") as agent:
            await asyncio.sleep(seconds / 4)
            one.stop(signal.SIGKILL)
            one.start(lives[2])
            await load.wait()
            held = {row["seq"] for row in await agent.ask("SELECT seq FROM processes_events_history")}

            def missing() -> list[int]:
                logged = {seq for life in lives for _, seq in logged_events(life)}
                # What was there before Zeek asked for the first time is not reported.
                return sorted(seq for seq in held - logged if seq > min(logged))

            await until(
                lambda: asyncio.to_thread(lambda: not missing()),
                60,
                lambda: (
                    f"{len(gone := missing())} of {len(held)} events are not logged, from {gone[:1]} to {gone[-1:]}"
                ),
            )
    finally:
        one.stop()
        if load is not None and load.returncode is None:
            load.kill()

    found = [logged_events(life) for life in lives]
    for numbers in found:
        assert len(set(numbers)) == len(numbers), "an event is twice in the logs of one life of Zeek"
    assert len({store for numbers in found for store, _ in numbers}) == 1
    assert len({seq for numbers in found for _, seq in numbers}) > 100 * seconds


def logged_events(directory: Path) -> list[tuple[str, int]]:
    return [(line["store"], line["seq"]) for line in records(directory / "zeek-agent-process-events.log")]


REUSE = """
import contextlib, json, os, socket, struct, sys, time
server = socket.create_server((sys.argv[1], 0), backlog=16)
pid = os.fork()
if not pid:
    while True:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.send(connection.recv(64))
            connection.recv(64)
port = None
for number in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        client = socket.socket()
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.bind((sys.argv[1], port or 0))
        client.connect(server.getsockname())
        client.send(b"ping")
        client.recv(64)
        os.write(writing, str(client.getsockname()[1]).encode())
        client.close()
        os._exit(0)
    port = int(os.read(reading, 16))
    os.waitpid(child, 0)
    sys.stdout.write(json.dumps({"orig_pid": child, "resp_pid": pid}) + "\\n")
    if sys.argv[3] == "told":
        sys.stdout.flush()
        sys.stdin.readline()
    else:
        time.sleep(float(sys.argv[3]))
os.kill(pid, 9)
"""


@pytest.mark.long
@needs_zeek
@pytest.mark.root
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "pause"), [(6, "told"), (20, "0.05")])
async def test_each_connection_of_ends_that_are_used_again_has_its_own_process(
    tmp_path: Path, number: int, pause: str
) -> None:
    """Once Zeek has been told of each; and also when the same ends come back sooner than agents tell of them."""
    logs = tmp_path / "zeek"
    with zeek(logs, "-i", "lo", "-f", "host 127.7.7.10", site=LOCAL) as url:
        async with running(tmp_path, f"--zeek={url}") as agent:
            await joined(logs)
            command = [sys.executable, "-c", REUSE, "127.7.7.10", str(number), pause]
            pipe = asyncio.subprocess.PIPE
            load = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            assert load.stdin is not None
            assert load.stdout is not None
            truth = []
            for _ in range(number):
                truth.append(json.loads(await load.stdout.readline()))
                if pause == "told":
                    await claimed(agent)
                    load.stdin.write(b"next\n")
            await load.wait()
            await claimed(agent)
    lines = sorted(records(logs / "conn.log"), key=lambda line: float(line["ts"]))
    assert len(lines) == len(truth) == number
    pids = [(line["orig_pid"], line["resp_pid"]) for line in lines]
    if pause == "told":  # a connection is removed, and logged, when its ends come back
        assert pids == [(one["orig_pid"], one["resp_pid"]) for one in truth]
    for (orig, resp), one in zip(pids, truth, strict=True):
        assert orig in (None, one["orig_pid"])
        assert resp in (None, one["resp_pid"])
