"""Own tables from commands and files, in real worker processes: their rows, their limits, and hostile programs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from own_table_files import declared, roots_directory, script
from waiting import until
from workers import contained, descendants, is_running

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.usage import ended_children_cpu_seconds
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database, Lane
from zeek_agent.database.privileged_tables import granted_privileges
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.host.programs import PROCESSES_MAX
from zeek_agent.own_tables import files
from zeek_agent.own_tables.declarations import CommandTable, OwnTable
from zeek_agent.own_tables.snapshots import table
from zeek_agent.own_tables.snapshots import tables as own_tables
from zeek_agent.table import TableContext

pytestmark = pytest.mark.root

COLUMNS = """columns = [
    {name = "name", type = "text", summary = "a name"},
    {name = "size", type = "count", summary = "a size"},
]
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with roots_directory() as directory:
        yield directory


def command(place: Path, text: str, options: str = "", columns: str = COLUMNS) -> Sequence[OwnTable]:
    """A table `made` from the output of a shell script."""
    program = script(place, "command", text)
    one = f'[tables.made]\nsummary = "made"\ncommand = ["{program}", "an argument"]\n{options}\n{columns}'
    return files.load([declared(place, one)])


@asynccontextmanager
async def database(
    tmp_path: Path, own: Sequence[OwnTable], access: AccessSettings | None = None, **limits: Any
) -> AsyncIterator[ContainedDatabase]:
    async with contained(tmp_path, None, LimitSettings(**limits), access, own=own) as opened:
        yield opened


async def rows(tmp_path: Path, own: Sequence[OwnTable], sql: str = "SELECT * FROM made", **options: Any) -> list[Any]:
    async with database(tmp_path, own, **options) as db:
        return (await db.query(sql)).rows


def helper_processes(db: ContainedDatabase) -> list[Any]:
    return [worker for worker in db.pool.processes if worker.kind.value == "helper"]


async def test_a_commands_objects_are_rows(tmp_path: Path, place: Path) -> None:
    output = json.dumps({"found": [{"name": "a", "size": 1}, {"name": "b"}, {"name": "c", "size": "many"}, 3]})
    own = command(place, f"echo '{output}'", 'rows = ["found"]')
    async with database(tmp_path, own) as db:
        result = await db.query("SELECT * FROM made ORDER BY name")
        assert result.rows == [("a", 1), ("b", None), ("c", None)]
        assert result.errors == (
            "table made: values of column size that are not a count and are unset: 1, such as 'many'",
            "table made: rows left out that are not JSON objects: 1, such as 3",
        )
        assert [(column.name, str(column.type)) for column in result.columns] == [("name", "text"), ("size", "count")]
        only_names = await db.query("SELECT name FROM made WHERE name = 'c'")
        assert only_names.rows == [("c",)]
        assert len(only_names.errors) == 1


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"""printf '{"name":"a","size":1}\n{"name":"b"}\n'""", "json_lines"),
        (r"printf 'size,name\n1,a\n,b\n'", "csv"),
        (r"printf 'size\tname\n1\ta\n\tb\n'", "tsv"),
    ],
)
async def test_the_other_formats_have_the_same_rows(text: str, form: str, tmp_path: Path, place: Path) -> None:
    assert await rows(tmp_path, command(place, text, f'format = "{form}"')) == [("a", 1), ("b", None)]


async def test_a_command_runs_without_shell_and_with_a_fixed_environment(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    columns = 'columns = [{name = "line", type = "text", summary = "a line"}]\n'
    text = 'read nothing; echo line; echo "$#:$1"; pwd; set | grep -c SECRET'
    program = script(place, "command", text)
    own = files.load(
        [
            declared(
                place,
                f"""[tables.made]
summary = "made"
command = ["{program}", "$(id); `id` *"]
format = "csv"
programs = ["/usr/bin/grep"]
{columns}""",
            )
        ]
    )
    program.write_text(program.read_text() + "exit 0\n")
    assert await rows(tmp_path, own) == [("1:$(id); `id` *",), ("/",), ("0",)]


async def test_a_command_has_the_privileges_of_its_class_only(tmp_path: Path, place: Path) -> None:
    text = """
echo name,size
while read -r key value rest; do
    case "$key" in Cap*|Uid:|NoNewPrivs:|Seccomp:) echo "$key $value,0"; esac
done < /proc/self/status
(echo x > /tmp/zeek-agent-own-table) && echo written,0
(exec /usr/bin/id) && echo executed,0
test -r /etc/shadow && echo shadow,0
exit 0
"""
    found = dict.fromkeys(name for name, _ in await rows(tmp_path, command(place, text, 'format = "csv"')))
    assert {f"{kind}: 0000000000000000" for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} <= found.keys()
    assert {"NoNewPrivs: 1", "Seccomp: 2"} <= found.keys()
    assert "Uid: 0" not in found
    assert found.keys().isdisjoint({"written", "executed", "shadow"})


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("echo no luck >&2; exit 3", "", r"table made: \S*/command failed with exit code 3: no luck"),
        ("echo nonsense", "", r"table made: the output is not JSON"),
        ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxx; done", "output_bytes = 100000", r"wrote more than 100000 bytes"),
        ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxx; done", "", r"wrote more than 4194304 bytes"),
        ("while :; do echo xxxxxxxxxxxxxx >&2; done", "timeout = 0.5", r"took longer than 0\.5 s \(timeout\)"),
        ("read x < /dev/tty; while :; do :; done", "timeout = 0.5", r"took longer than 0\.5 s \(timeout\)"),
        ("exec >&- 2>&-; while :; do :; done", "timeout = 0.5", r"took longer than 0\.5 s \(timeout\)"),
        ("while :; do :; done", "", r"limits\.time"),
        ("x=x; while :; do x=$x$x$x$x; done", "", r"failed with exit code|was ended by signal"),
    ],
    ids=["status", "format", "endless", "endless, default", "errors", "time", "closed", "limit", "memory"],
)  # fmt: skip
async def test_a_command_that_fails_is_the_statements_error(
    text: str, options: str, error: str, tmp_path: Path, place: Path
) -> None:
    async with database(tmp_path, command(place, text, options), time=3.0) as db:
        with pytest.raises(SqlError, match=error):
            await db.query("SELECT * FROM made")
        await until(lambda: not [one for one in helper_processes(db) if one.state == "busy"], 10)
        assert (await db.query("SELECT 1 AS one")).rows == [(1,)]


@pytest.mark.long
async def test_what_a_command_leaves_behind_ends_with_its_helper(tmp_path: Path, place: Path) -> None:
    """Also what keeps the output open, and what wanted to be a daemon."""
    text = """
(while :; do read x < /dev/zero; done) &
(trap '' HUP TERM INT; while :; do read x < /dev/zero; done > /dev/null 2>&1) > /dev/null 2>&1 &
echo '{"name": "a", "size": '$!'}'
"""
    async with database(tmp_path, command(place, text), time=20.0) as db:
        for _ in range(3):
            ((name, pid),) = (await db.query("SELECT * FROM made")).rows
            assert name == "a"
            await until(lambda pid=pid: not is_running(pid), 10)
        await until(lambda: not helper_processes(db), 10)
        assert db.pool.killed.total() == 0
        zygote = db.pool.zygote_pid
        assert zygote is not None
        await until(lambda: all(b"command" not in _command_line(pid) for pid in descendants(zygote)), 10)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.long
async def test_a_command_cannot_leave_the_process_group_that_ends_with_its_helper(tmp_path: Path, place: Path) -> None:
    setsid = shutil.which("setsid")
    assert setsid is not None
    text = f'echo "{{\\"name\\": \\"$({setsid} --fork {setsid} 2>&1)\\"}}"'
    ((said, _),) = await rows(tmp_path, command(place, text, f'programs = ["{setsid}"]'))
    assert said == "setsid: setsid failed: Operation not permitted"


@pytest.mark.long
async def test_a_fork_bomb_ends_with_the_statement(tmp_path: Path, place: Path) -> None:
    text = "n=0; while [ $n -lt 40 ]; do (while :; do read x < /dev/zero; done) & n=$((n+1)); done; wait"
    async with database(tmp_path, command(place, text, "timeout = 1.0")) as db:
        with pytest.raises(SqlError, match=r"took longer than 1 s"):
            await db.query("SELECT * FROM made")
        zygote = db.pool.zygote_pid
        assert zygote is not None
        await until(lambda: all(b"command" not in _command_line(pid) for pid in descendants(zygote)), 10)


@pytest.mark.long
async def test_hostile_output_costs_values_and_rows_and_no_statement(tmp_path: Path, place: Path) -> None:
    """NUL bytes, bytes that are no text, deep nesting, huge numbers."""
    lines = (
        b'{"name": "a\\u0000b", "size": 1}\n'
        b'{"name": "\xff\xfe", "size": 18446744073709551616}\n'
        b'{"name": "\\ud800", "size": 2}\n'
        b'{"name": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n"
        b'{"name": "deep", "size": ' + b"[" * 100_000 + b"}\n"
        b'{"name": "c", "size": ' + b"9" * 5_000 + b"}\n"
        b'{"name": "d", "size": 1e999}\n'
        b'{"name": "e", "size": -1}\n\x00\n'
    )
    (place / "output").write_bytes(lines)
    program = script(place, "command", f"exec /usr/bin/cat {place}/output")
    own = files.load(
        [
            declared(
                place,
                f'[tables.made]\nsummary = "made"\ncommand = ["{program}"]\nprograms = ["/usr/bin/cat"]\n'
                f'format = "json_lines"\n{COLUMNS}',
            )
        ]
    )
    async with database(tmp_path, own) as db:
        result = await db.query("SELECT * FROM made")
    assert result.rows == [("a\0b", 1), ("\uefff\ueffe", None), ("e", None)]
    assert any("lines left out that are not JSON: 6" in error for error in result.errors)


@pytest.mark.long
async def test_rows_are_limited_as_those_of_any_table(tmp_path: Path, place: Path) -> None:
    text = 'n=0; while [ $n -lt 2000 ]; do echo "{\\"name\\": \\"$n\\"}"; n=$((n+1)); done'
    with pytest.raises(LimitError, match=r"table made has more than 1000 rows"):
        await rows(tmp_path, command(place, text, 'format = "json_lines"'), rows=1_000)


async def test_a_command_runs_once_for_a_join(tmp_path: Path, place: Path) -> None:
    """And its rows are shared by statements of the same moment, as those of other tables."""
    own = command(place, 'read -r up idle < /proc/uptime; echo \'[{"name": "\'$$\'"}, {"name": "\'$$\'"}]\'')
    sql = "SELECT count(*), count(DISTINCT name) FROM (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) CROSS JOIN made"
    assert await rows(tmp_path, own, sql) == [(6, 1)]


async def test_a_replaced_program_is_not_executed(tmp_path: Path, place: Path) -> None:
    own = command(place, 'echo \'{"name": "a"}\'')
    async with database(tmp_path, own) as db:
        assert (await db.query("SELECT name FROM made", lane=Lane.LOCAL)).rows == [("a",)]
        for change, error in (
            (lambda: (place / "command").chmod(0o775), "with mode 0775"),
            (lambda: os.chown(place / "command", 1, 1), "belongs to uid 1"),
            (lambda: (os.chown(place / "command", 0, 0), (place / "command").chmod(0o755), place.chmod(0o777)), "0777"),
        ):
            change()
            with pytest.raises(SqlError, match=error):
                await db.query("SELECT name FROM made", lane=Lane.LOCAL)
        place.chmod(0o755)
        (place / "command").unlink()
        with pytest.raises(SqlError, match="No such file"):
            await db.query("SELECT name FROM made", lane=Lane.LOCAL)
        link = place / "command"
        link.symlink_to(script(tmp_path, "theirs", 'echo \'{"name": "b"}\''))
        with pytest.raises(SqlError, match="/tmp belongs to uid 0 with mode 1777"):
            await db.query("SELECT name FROM made", lane=Lane.LOCAL)


async def test_an_own_table_can_be_denied_like_any_other(tmp_path: Path, place: Path) -> None:
    own = command(place, 'echo \'{"name": "a"}\'')
    with pytest.raises(AccessDeniedError, match="made"):
        await rows(tmp_path, own, access=AccessSettings(tables_deny=("made",)))


async def test_the_network_is_only_there_for_a_command_that_declares_it(tmp_path: Path, place: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    program = place / "command"
    program.write_text(
        "#!/usr/bin/python3 -IS\nimport socket\n"
        f"try:\n    socket.create_connection(('127.0.0.1', {port}), 5)\n    found = 'connected'\n"
        "except OSError as error:\n    found = error.strerror\n"
        'print(\'{"name": "%s"}\' % found)\n'
    )
    program.chmod(0o755)
    text = f'summary = "made"\ncommand = ["{program}"]\n{COLUMNS}'
    own = files.load([declared(place, f"[tables.made]\n{text}\n[tables.dialled]\nnetwork = true\n{text}")])
    async with server, database(tmp_path, own) as db:
        assert (await db.query("SELECT name FROM made")).rows == [("Operation not permitted",)]
        assert (await db.query("SELECT name FROM dialled")).rows == [("connected",)]


async def test_without_worker_processes_a_command_runs_in_this_one(place: Path) -> None:
    """As for commands of an ordinary user, who has no privileges to drop."""
    own = command(place, 'echo \'[{"name": "a"}, 3]\'')
    opened = Database(own_tables(own), TableContext(NoAgent()), LimitSettings(time=10.0))
    try:
        result = await opened.query("SELECT name FROM made")
    finally:
        await opened.aclose()
    assert result.rows == [("a",)]
    assert result.errors == ("table made: rows left out that are not JSON objects: 1, such as 3",)


# Files


async def test_columns_of_files_go_through_the_path_gate(tmp_path: Path, place: Path) -> None:
    (place / "app.conf").write_text("# a comment\nlisten 0.0.0.0 80\nworkers 4\n\nlisten ::1 x\n")
    (place / "id_rsa.conf").write_text("secret 1\n")
    path = declared(
        place,
        f"""
[tables.settings]
summary = "settings of the application"
files = "{place}/*.conf"
columns = [
    {{name = "file", type = "text", summary = "the file", source = "path"}},
    {{name = "line", type = "count", summary = "number of the line", source = "number"}},
    {{name = "setting", type = "text", summary = "the setting", source = 1}},
    {{name = "value", type = "text", summary = "its value", source = 2}},
    {{name = "port", type = "count", summary = "the port", source = 3}},
    {{name = "whole", type = "blob", summary = "the line", source = 0}},
]
[tables.passwords]
summary = "what may not be read"
files = "/etc/shadow"
separator = ":"
columns = [{{name = "user", type = "text", summary = "the user"}}]
""",
    )
    own = files.load([path])
    access = AccessSettings(files_allow=(f"{place}/app.conf", "/etc/shadow"))
    async with database(tmp_path, own, access) as db:
        result = await db.query("SELECT * FROM settings")
        assert result.rows == [
            (f"{place}/app.conf", 1, "listen", "0.0.0.0", 80, b"listen 0.0.0.0 80"),
            (f"{place}/app.conf", 2, "workers", "4", None, b"workers 4"),
            (f"{place}/app.conf", 3, "listen", "::1", None, b"listen ::1 x"),
        ]
        (error,) = result.errors
        assert error == "table settings: values of column port that are not a count and are unset: 1, such as 'x'"
        assert result.files.refused == 1
        denied = await db.query("SELECT * FROM passwords")
        assert denied.rows == []
        assert denied.files.refused == 1
    async with database(tmp_path, own) as db:
        assert (await db.query("SELECT * FROM settings")).rows == []


@pytest.mark.long
async def test_lines_of_any_bytes_are_split(tmp_path: Path, place: Path) -> None:
    (place / "list").write_bytes(b"\x00a;\xff;1\n;;\n" + b"x" * 100_000 + b";b;2\n")
    path = declared(
        place,
        f"""
[tables.list]
summary = "a list"
files = "{place}/list"
separator = ";"
ignore = "^$"
columns = [
    {{name = "first", type = "text", summary = "1"}},
    {{name = "second", type = "blob", summary = "2"}},
    {{name = "third", type = "count", summary = "3"}},
]
""",
    )
    found = await rows(
        tmp_path, files.load([path]), "SELECT * FROM list", access=AccessSettings(files_allow=(f"{place}/**",))
    )
    assert found == [("\0a", b"\xff", 1), ("", None, None), ("x" * 100_000, b"b", 2)]


def test_a_table_with_privileges_of_its_own_needs_no_further_permission(place: Path) -> None:
    (one,) = command(place, "true")
    assert isinstance(one, CommandTable)
    made = table(one)
    assert AccessPolicy().refused_privilege("made", made.privileges) is not None
    assert granted_privileges(made, AccessPolicy()) == made.privileges


@pytest.mark.long
async def test_processor_time_of_commands_is_charged_to_their_statements(tmp_path: Path, place: Path) -> None:
    text = 'n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done; echo \'{"name": "a"}\''
    sql = "SELECT name FROM made"
    async with database(tmp_path, command(place, text)) as db:
        await db.query("SELECT 1", origin="ws://zeek")
        await db.query(sql, origin="ws://zeek")
        idle, busy = (db.pool.usage("ws://zeek", one).cpu for one in ("SELECT 1", sql))
        (helper,) = helper_processes(db)
        assert ended_children_cpu_seconds(helper.pid) > 0
        assert busy > ended_children_cpu_seconds(helper.pid)
        assert busy > idle


@pytest.mark.long
async def test_a_command_cannot_start_ever_more_processes(tmp_path: Path, place: Path) -> None:
    program = place / "command"
    program.write_text(
        "#!/usr/bin/python3 -IS\nimport os, time\nnumber = 0\ntry:\n    while number < 5000:\n"
        "        if os.fork() == 0:\n            time.sleep(60)\n            os._exit(0)\n        number += 1\n"
        "except BlockingIOError:\n    pass\n"
        "print('{\"size\": %d}' % number)\n"
    )
    program.chmod(0o755)
    own = files.load([declared(place, f'[tables.made]\nsummary = "made"\ncommand = ["{program}"]\n{COLUMNS}')])
    async with database(tmp_path, own) as db:
        ((number,),) = (await db.query("SELECT size FROM made")).rows
        assert 10 < number <= PROCESSES_MAX
        zygote = db.pool.zygote_pid
        assert zygote is not None
        await until(lambda: all(b"command" not in _command_line(pid) for pid in descendants(zygote)), 10)
        assert (await db.query("SELECT 1 AS one")).rows == [(1,)]


@pytest.mark.long
async def test_notes_show_no_value_of_a_table_with_denied_columns(tmp_path: Path, place: Path) -> None:
    own = command(place, 'echo \'[{"name": "a", "size": "secret"}, "secret"]\'')
    async with database(tmp_path, own, AccessSettings(columns_deny=("made.size",))) as db:
        result = await db.query("SELECT * FROM made")
    assert result.rows == [("a", None)]
    assert result.errors == ("table made: rows left out that are not JSON objects: 1",)


@pytest.mark.long
async def test_standard_error_is_not_shown_for_a_table_with_denied_columns(tmp_path: Path, place: Path) -> None:
    own = command(place, "echo 'secret is too large' >&2; exit 3")
    for denied, ending in ((), ": secret is too large"), (("made.size",), ""):
        async with database(tmp_path, own, AccessSettings(columns_deny=denied)) as db:
            with pytest.raises(SqlError, match=f"/command failed with exit code 3{ending}$"):
                await db.query("SELECT name FROM made")
