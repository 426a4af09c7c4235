"""The listener on a named pipe, with instances that stand for Windows' own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from waiting import until

from zeek_agent.platforms import named_pipes


class Pipe:
    """An instance, as asyncio's `PipeHandle`."""

    def __init__(self, *, is_first: bool) -> None:
        self.is_first = is_first
        self.handle: int | None = 1

    def close(self) -> None:
        self.handle = None


class Loop:
    """The loop of Windows: clients connect when the test says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.call_later, self.call_soon = self._loop.call_later, self._loop.call_soon
        self.waiting: list[tuple[Pipe, asyncio.Future[Any]]] = []
        self.served: list[Pipe] = []
        self.gone = 0
        """How many of the next clients have closed their connection before it is accepted."""

    def accept_pipe(self, pipe: Pipe) -> asyncio.Future[Any]:
        if self.gone:
            self.gone -= 1
            raise BrokenPipeError("the pipe is being closed")
        accepting = self._loop.create_future()
        self.waiting.append((pipe, accepting))
        return accepting

    def serve_pipe(self, pipe: Pipe, _: asyncio.BaseProtocol) -> None:
        self.served.append(pipe)

    async def connect(self) -> Pipe:
        pipe, accepting = self.waiting.pop()
        accepting.set_result(pipe)
        await asyncio.sleep(0)
        return pipe


class Pipes:
    """Creates instances, up to `most` open ones, as Windows does."""

    def __init__(self, most: int = 255) -> None:
        self.most = most
        self.made: list[Pipe] = []

    @property
    def open(self) -> list[Pipe]:
        return [pipe for pipe in self.made if pipe.handle is not None]

    def __call__(self, name: str, sddl: str, *, is_first: bool) -> Pipe:
        if len(self.open) >= self.most:
            raise OSError("all pipe instances are busy")
        self.made.append(Pipe(is_first=is_first))
        return self.made[-1]


async def serve(*_: object) -> None:
    """Nothing: the loop does not read from its pipes."""


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pipes], tuple[Loop, Any]]:
    def begin(pipes: Pipes) -> tuple[Loop, Any]:
        loop = Loop()
        monkeypatch.setattr(named_pipes.windows_loop, "current", lambda: loop)
        monkeypatch.setattr(named_pipes, "_new_pipe", pipes)
        monkeypatch.setattr(named_pipes.asyncio, "StreamReader", lambda **_: None)
        monkeypatch.setattr(named_pipes.asyncio, "StreamReaderProtocol", lambda *_, **__: None)
        return loop, named_pipes._PipeListener("name", "D:P", serve, 1000, pause_seconds=0.01)

    return begin


async def test_only_the_first_instance_must_be_the_only_one(listen: Callable[[Pipes], tuple[Loop, Any]]) -> None:
    pipes = Pipes()
    loop, listener = listen(pipes)
    for _ in range(3):
        await loop.connect()
    assert [pipe.is_first for pipe in pipes.made] == [True, False, False, False]
    assert loop.served == pipes.made[:3]
    listener.close()
    assert pipes.made[3].handle is None


async def test_connections_are_accepted_again_after_too_many(listen: Callable[[Pipes], tuple[Loop, Any]]) -> None:
    pipes = Pipes(most=2)
    loop, listener = listen(pipes)
    first, second = await loop.connect(), await loop.connect()
    assert loop.waiting == []
    first.close()
    await until(lambda: len(loop.waiting) == 1)
    assert [pipe.is_first for pipe in pipes.made] == [True, False, False]
    assert loop.served == [first, second]
    listener.close()


async def test_a_name_without_instances_is_claimed_as_the_first(listen: Callable[[Pipes], tuple[Loop, Any]]) -> None:
    """Otherwise somebody who has created the pipe meanwhile would be the one whom commands reach."""
    pipes = Pipes(most=1)
    loop, listener = listen(pipes)
    (await loop.connect()).close()
    await until(lambda: len(loop.waiting) == 1)
    assert pipes.made[-1].is_first
    listener.close()


async def test_a_client_that_closes_at_once_does_not_end_the_listener(
    listen: Callable[[Pipes], tuple[Loop, Any]],
) -> None:
    pipes = Pipes()
    loop, listener = listen(pipes)
    loop.gone = 3
    await loop.connect()
    await until(lambda: len(loop.waiting) == 1)
    assert len(pipes.open) == 2
    listener.close()


async def test_a_closed_listener_makes_no_more_instances(listen: Callable[[Pipes], tuple[Loop, Any]]) -> None:
    pipes = Pipes(most=1)
    loop, listener = listen(pipes)
    client = await loop.connect()
    listener.close()
    client.close()
    await asyncio.sleep(0.05)
    assert len(pipes.made) == 1
