"""The event loop on Windows replaces methods of asyncio that another version of Python may have changed."""

from __future__ import annotations

import asyncio
from asyncio.proactor_events import BaseProactorEventLoop

import pytest

from zeek_agent import platforms
from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms import windows_loop
from zeek_agent.platforms.windows_loop import new_loop, unsupported


def test_the_loop_of_this_python_has_the_methods() -> None:
    assert unsupported(BaseProactorEventLoop) is None


def test_a_method_that_is_missing_is_named() -> None:
    assert unsupported(object) == "it has no _start_serving, _stop_serving, _make_duplex_pipe_transport"


def test_other_arguments_are_noticed() -> None:
    class Other(BaseProactorEventLoop):
        def _start_serving(self, sock: object, *others: object) -> None:
            """Not that of Python 3.11."""

    assert unsupported(Other) == "_start_serving takes sock, others"


def test_another_python_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_loop, "unsupported", lambda _: "it has no pipes")
    with pytest.raises(ZeekAgentError, match=r"cannot serve pipes \(it has no pipes\): use Python 3.11 to 3.13"):
        new_loop()


@pytest.mark.skipif(platforms.HERE.key != "win32", reason="needs Windows, or Wine")
def test_no_wake_up_by_a_thread_is_lost() -> None:
    async def wake_often() -> int:
        loop = asyncio.get_running_loop()
        for _ in range(2_000):
            await loop.run_in_executor(None, int)
        return 2_000

    assert platforms.HERE.run(wake_often()) == 2_000
