"""The control socket: real Unix sockets, the blocking client, and clients that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from acting import NOBODY, acting_as
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent import errors, platforms
from zeek_agent.control import messages
from zeek_agent.control.messages import (
    Columns,
    ControlClient,
    Facts,
    Frame,
    NoAgentError,
    Note,
    QueryRequest,
    Request,
    Rows,
    StatusRequest,
)
from zeek_agent.control.server import CONNECTIONS_MAX, AnswerFunction, ControlServer
from zeek_agent.control_transport import NotListeningError
from zeek_agent.errors import AccessDeniedError, SqlError, UsageError, ZeekAgentError
from zeek_agent.schema import Column, Parameter
from zeek_agent.table import Table
from zeek_agent.table_declarations import declare, declared

COLUMNS = Columns([("a", "int"), ("b", "text")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return platforms.HERE.control_of(tmp_path)


class Agent:
    """A server on a socket, with an answer that the test gives."""

    def __init__(self, path: Path, answer: AnswerFunction, **options: Any) -> None:
        self.server = ControlServer(path, None, answer, **options)

    async def __aenter__(self) -> ControlServer:
        await self.server.start()
        return self.server

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()


async def answer_with_rows(request: Request, origin: str) -> AsyncGenerator[Frame, None]:
    match request:
        case QueryRequest(sql="broken"):
            raise SqlError("near broken: syntax error")
        case QueryRequest(sql="denied"):
            raise AccessDeniedError("no")
        case QueryRequest(sql="fault"):
            raise RuntimeError("a fault")
        case QueryRequest():
            yield COLUMNS
            yield Rows([(1, "x"), (2, None)])
        case _:
            yield Facts({"origin": origin})


async def ask(path: Path, *requests: Request) -> list[list[Frame]]:
    def work() -> list[list[Frame]]:
        client = ControlClient(path)
        try:
            return [list(client.responses(request)) for request in requests]
        finally:
            client.close()

    return await asyncio.to_thread(work)


async def send_raw(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines as they are and read an answer's last frame for each."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**26)
    answers = []
    for line in lines:
        writer.write(line + b"\n")
        while (frame := msgspec.json.decode(await reader.readline()))["frame"] not in ("done", "failed"):
            pass
        answers.append(frame)
    writer.close()
    await writer.wait_closed()
    return answers


def make_reachable(place: Path) -> None:
    """Let other users enter a directory that pytest made."""
    for directory in (place, *place.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)


async def test_a_client_sends_several_requests_on_one_connection(path: Path) -> None:
    async with Agent(path, answer_with_rows):
        first, second = await ask(path, QueryRequest("SELECT 1"), StatusRequest())
    assert first == [COLUMNS, Rows([(1, "x"), (2, None)])]
    assert isinstance(second[0], Facts)
    assert second[0].facts["origin"] == f"control uid={os.getuid()} pid={os.getpid()}"


@pytest.mark.root
async def test_large_uids_of_clients_are_not_negative(path: Path, tmp_path: Path) -> None:
    make_reachable(tmp_path)
    async with Agent(path, answer_with_rows):
        path.chmod(0o666)
        with acting_as(3_000_000_000, NOBODY):
            client = ControlClient(path)
        (status, *_) = await asyncio.to_thread(lambda: list(client.responses(StatusRequest())))
        client.close()
    assert isinstance(status, Facts)
    assert status.facts["origin"] == f"control uid=3000000000 pid={os.getpid()}"


@pytest.mark.parametrize(("sql", "error"), [("broken", SqlError), ("denied", AccessDeniedError)])
async def test_errors_keep_their_class_and_text(path: Path, sql: str, error: type[ZeekAgentError]) -> None:
    async with Agent(path, answer_with_rows):
        with pytest.raises(error):
            await ask(path, QueryRequest(sql))


async def test_a_fault_in_an_answer_does_not_end_the_connection(path: Path) -> None:
    async with Agent(path, answer_with_rows):
        fault, fine = await send_raw(path, b'{"request":"query","sql":"fault"}', b'{"request":"status"}')
    assert "a fault" in fault["message"]
    assert fine["frame"] == "done"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"{}",
        b"[]",
        b'{"request":"nonsense"}',
        b'{"request":"query"}',
        b'{"request":"query","sql":5}',
        b'{"request":"query","sql":"\xff"}',
        b'{"request":"query","sql":"SELECT 1","more":1}',
        b'{"request":"subscribe","sql":"SELECT 1","subscription":"Events","schedule":0}',
        b"[" * 100_000,
        b"x" * (messages.REQUEST_BYTES_MAX * 3),
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)
async def test_malformed_input_is_answered_and_the_connection_kept(path: Path, line: bytes) -> None:
    async with Agent(path, answer_with_rows):
        wrong, right = await send_raw(path, line, b'{"request":"status"}')
    assert wrong["frame"] == "failed"
    assert wrong["message"].startswith("not a request")
    assert right["frame"] == "done"


async def test_requests_may_be_sent_ahead(path: Path) -> None:
    async with Agent(path, answer_with_rows):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"request":"status"}\n' * 3)
        writer.write_eof()
        frames = [msgspec.json.decode(line) for line in (await reader.read()).splitlines()]
        writer.close()
    assert [frame["frame"] for frame in frames].count("facts") >= 1


async def test_a_client_that_disconnects_aborts_its_answer(path: Path) -> None:
    ended = asyncio.Event()

    async def endless(request: Request, origin: str) -> AsyncGenerator[Frame, None]:
        try:
            yield COLUMNS
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with Agent(path, endless):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"request":"status"}\n')
        await reader.readline()
        writer.close()
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_client_that_does_not_read_is_bounded_and_disconnected(path: Path) -> None:
    sent = 0
    ended = asyncio.Event()

    async def flood(request: Request, origin: str) -> AsyncGenerator[Frame, None]:
        nonlocal sent
        try:
            yield COLUMNS
            while True:
                yield Rows([(1, "x" * 1000)] * 100)
                sent += 100_000
        finally:
            ended.set()

    async with Agent(path, flood, send_timeout_seconds=0.3):
        _, writer = await asyncio.open_unix_connection(str(path), limit=1024)
        writer.write(b'{"request":"status"}\n')
        await asyncio.wait_for(ended.wait(), 10)
        assert sent < 4_000_000
        other = await ask_of_another(path)
        writer.close()
    assert other


async def ask_of_another(path: Path) -> bool:
    """Whether a further client still gets its first frame."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"request":"status"}\n')
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return line.startswith(b'{"frame":"columns"')


async def test_connections_are_bounded(path: Path) -> None:
    async with Agent(path, answer_with_rows):
        pairs = [await asyncio.open_unix_connection(str(path)) for _ in range(CONNECTIONS_MAX + 1)]
        line = await asyncio.wait_for(pairs[-1][0].readline(), 5)
        assert b"too many connections" in line
        for _, writer in pairs:
            writer.close()
        await asyncio.sleep(0.05)
        assert await ask(path, StatusRequest())


async def test_stop_ends_clients_and_removes_the_socket(path: Path) -> None:
    async def endless(request: Request, origin: str) -> AsyncGenerator[Frame, None]:
        yield COLUMNS
        await asyncio.sleep(3600)

    server = ControlServer(path, None, endless)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"request":"status"}\n')
    await reader.readline()
    await server.stop()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert not path.exists()
    writer.close()


async def test_the_socket_is_its_owners_unless_a_group_is_given(path: Path) -> None:
    async with Agent(path, answer_with_rows):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    grp = pytest.importorskip("grp")
    group = grp.getgrgid(os.getgid()).gr_name
    server = ControlServer(path, group, answer_with_rows)
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == os.getgid()
    await server.stop()


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(NoAgentError):
        ControlClient(path)
    async with Agent(path, answer_with_rows):
        assert await ask(path, StatusRequest())


async def test_a_path_longer_than_the_systems_limit_works(tmp_path: Path) -> None:
    directory = tmp_path / ("deep-" * 20) / ("clone-" * 20)
    path = directory / "zeek-agent.sock"
    for _ in range(2):
        async with Agent(path, answer_with_rows):
            assert path.is_socket()
            assert await asyncio.to_thread(ask_once, path) == [COLUMNS, Rows([(1, "x"), (2, None)])]
        assert list(directory.iterdir()) == []
    with pytest.raises(NoAgentError):
        ControlClient(tmp_path / ("deep-" * 30) / "zeek-agent.sock")


def ask_once(path: Path) -> list[Frame]:
    client = ControlClient(path)
    try:
        return list(client.responses(QueryRequest("SELECT 1")))
    finally:
        client.close()


async def test_an_obstacle_at_the_path_is_named(path: Path, tmp_path: Path) -> None:
    async with Agent(path, answer_with_rows):
        with pytest.raises(ZeekAgentError, match="another agent listens on"):
            await ControlServer(path, None, answer_with_rows).start()
    path.write_text("precious")
    with pytest.raises(ZeekAgentError, match="is not a socket"):
        await ControlServer(path, None, answer_with_rows).start()
    assert path.read_text() == "precious"
    with pytest.raises(UsageError, match="no-such-group"):
        await ControlServer(tmp_path / "a", "no-such-group", answer_with_rows).start()
    with pytest.raises(UsageError, match=r"control\.socket"):
        await ControlServer(tmp_path / ("a" * 120), None, answer_with_rows).start()
    with pytest.raises(NotListeningError, match=r"cannot create the control socket .*File exists"):
        await ControlServer(path / "below", None, answer_with_rows).start()


def test_nobody_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match="no agent is running"):
        ControlClient(tmp_path / "absent")


@pytest.mark.root
async def test_a_user_without_permission_to_connect_gets_advice(path: Path, tmp_path: Path) -> None:
    make_reachable(tmp_path)
    async with Agent(path, answer_with_rows):
        with acting_as(NOBODY, NOBODY), pytest.raises(ZeekAgentError, match=r"control\.group"):
            ControlClient(path)


def test_an_agent_of_another_version_is_recognized(path: Path) -> None:
    with pytest.raises(ZeekAgentError, match="a different version"):
        messages.decode_frame(b'{"frame":"hologram"}\n')
    with pytest.raises(ZeekAgentError, match="a different version"):
        messages.decode_frame(b"\x00")


cells = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(st.lists(st.tuples(cells, cells), max_size=5))
def test_any_row_survives_the_wire(rows: list[tuple[Any, Any]]) -> None:
    lines = list(messages.encode_frame(Rows(rows)))
    decoded = [row for line in lines for row in messages.decode_frame(line).rows]  # type: ignore[union-attr]
    assert decoded == rows
    assert [[type(cell) for cell in row] for row in decoded] == [[type(cell) for cell in row] for row in rows]


def test_many_rows_become_several_frames_with_their_changes() -> None:
    rows = [(number, "x" * 1000) for number in range(1000)]
    changes: list[messages.ChangeName | None] = ["Add" if number % 2 else "Delete" for number in range(1000)]
    lines = list(messages.encode_frame(Rows(rows, changes)))
    assert 3 <= len(lines) <= 5
    assert max(map(len, lines)) < 2 * messages.ROWS_FRAME_BYTES
    frames = [messages.decode_frame(line) for line in lines]
    assert [row for frame in frames for row in frame.rows] == rows  # type: ignore[union-attr]
    assert [change for frame in frames for change in frame.changes] == changes  # type: ignore[union-attr]


def test_notes_and_declarations_survive_the_wire() -> None:
    assert messages.decode_frame(next(messages.encode_frame(Note("a\nb")))) == Note("a\nb")
    table = Table(
        "files",
        "some files",
        description="Files.",
        columns=[Column("path", "text", "where", added=True), Column("tags", "set[text]", "what")],
        parameters=[Parameter("pattern", "text", "which", default="/*", required=False)],
        examples=["SELECT 1"],
        kind="events",
        alias=True,
    )
    frame = messages.decode_frame(next(messages.encode_frame(messages.Declarations(declare([table])))))
    assert isinstance(frame, messages.Declarations)
    (copy,) = declared(frame.tables)
    assert vars(copy) == vars(table)


@pytest.mark.parametrize("kind", [name for name in vars(errors) if name.endswith("Error")])
def test_every_error_of_the_agent_reaches_the_client_as_what_it_is(kind: str) -> None:
    error = messages._error(messages.Failed(kind, "the reason"))
    assert (type(error).__name__, str(error)) == (kind, "the reason")
