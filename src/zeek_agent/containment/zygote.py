"""The agent's side of the zygote, from which worker processes are forked (Linux's way to start them fast).

It is started when the first worker is needed, by exec, so that it shares no memory and no descriptor with the agent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeek_agent.containment import channel, messages, own_code
from zeek_agent.containment.channel import ChannelError
from zeek_agent.containment.messages import Exited, Setup, Spawn, Spawned

if TYPE_CHECKING:
    import msgspec

log = logging.getLogger(__name__)

LOADING_SECONDS: Final = 120.0
"""An overloaded host may take that long to load the zygote. Killed before, it would never be ready."""


class WorkerLostError(Exception):
    """A worker, or the zygote, ended without having been told to; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started: its pid, a descriptor of the process (pidfd), and the socket to it."""

    pid: int
    pidfd: int
    connection: socket.socket


class Zygote:
    """Starts workers. `on_exit` is called with each worker's end, `on_loss` once if the zygote itself ends."""

    def __init__(self, setup: Setup, on_exit: Callable[[Exited], None], on_loss: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._starting: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._loaded_by: float | None = time.monotonic() + LOADING_SECONDS
        self._loop = asyncio.get_running_loop()
        own, theirs = channel.pair()
        try:
            command = own_code.command("zeek_agent.worker.__main__", str(theirs.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=_environment(),
                process_group=0,  # Ctrl-C in a terminal interrupts the shell's statement, and not the zygote
            )
        except OSError as error:
            own.close()
            raise WorkerLostError(f"cannot start a worker process: {error}") from error
        finally:
            theirs.close()
        self._control = own
        channel.send(own, messages.encode(setup))
        own.setblocking(False)
        self._loop.add_reader(own, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended; its workers end with it."""
        return self._process.poll() is None

    def may_be_loading(self) -> bool:
        """Whether it has not answered yet, and has not had much time to."""
        return self._loaded_by is not None and time.monotonic() < self._loaded_by

    async def start(self, spawn: Spawn) -> Started:
        """Start a worker. Raises WorkerLostError."""
        own, theirs = channel.pair()
        answer: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        self._starting[spawn.worker] = answer
        try:
            channel.send(self._control, messages.encode(spawn), [theirs.fileno()])
            pid, pidfd = await answer
        except OSError as error:
            own.close()
            raise WorkerLostError(f"cannot reach the zygote: {error}") from error
        except BaseException:
            own.close()
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                os.close(answer.result()[1])  # cancelled just after the worker was there
            raise
        finally:
            theirs.close()
            self._starting.pop(spawn.worker, None)
        own.setblocking(False)
        return Started(pid, pidfd, own)

    def close(self) -> None:
        """Let the zygote end. Returns at once; `wait` collects it."""
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
            self._control.close()
        for answer in self._starting.values():
            if not answer.done():
                answer.set_exception(WorkerLostError("the zygote of worker processes has ended"))

    def kill(self) -> None:
        """End it, and with it all workers, because it does not answer."""
        log.error("the zygote of worker processes does not answer and is killed")
        self._process.kill()

    async def wait(self, seconds: float) -> None:
        """Wait for its end; kill it after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while self._process.poll() is None:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            self._process.kill()
            await asyncio.to_thread(self._process.wait, 1.0)

    def _read(self) -> None:
        try:
            while (received := channel.receive(self._control)) is not None:
                self._handle(*received)
                if self._control.fileno() < 0:  # it was closed for what it said: its last process has ended
                    return
        except BlockingIOError:
            return
        except (ChannelError, OSError, ValueError) as error:
            log.error("the zygote of worker processes is unusable: %s", error)
        self._lost()

    def _handle(self, body: bytes, descriptors: list[int]) -> None:
        message: msgspec.Struct = messages.decode_from_zygote(body)
        match message:
            case Spawned() if len(descriptors) == 1:
                self._loaded_by = None
                answer = self._starting.get(message.worker)
                if answer is not None and not answer.done():
                    answer.set_result((message.pid, descriptors[0]))
                else:
                    channel.close_all(descriptors)
            case Exited():
                self._on_exit(message)
            case _:
                channel.close_all(descriptors)
                raise ChannelError("the zygote's message lacks its descriptor")

    def _lost(self) -> None:
        self.close()
        self._on_loss()


def _environment() -> dict[str, str]:
    """What Python and the C library need; no secret that the agent was started with reaches a worker."""
    kept = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
    return {name: os.environ[name] for name in kept if name in os.environ}
