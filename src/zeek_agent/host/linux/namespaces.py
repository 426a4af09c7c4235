"""Running a function in another network namespace (network_namespaces(7))."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

Result = TypeVar("Result")

_CLONE_NEWNET: Final = 0x4000_0000


def in_network_namespace(path: str, function: Callable[[], Result]) -> Result:
    """The result of `function`, run in the namespace of that file (`/proc/PID/ns/net`).

    It runs in a separate thread, which ends with it, so that no other thread changes its namespace. Raises OSError when
    the namespace is gone or must not be entered (which requires CAP_SYS_ADMIN), and whatever `function` raises.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def enter() -> None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc().setns(file, _CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), path)
            finally:
                os.close(file)
            results.append(function())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=enter, name="network-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
