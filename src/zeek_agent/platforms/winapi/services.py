"""Services: installation, control, and a program that the service control manager has started.

References: CreateServiceW, StartServiceCtrlDispatcherW, RegisterServiceCtrlHandlerExW, SetServiceStatus and
SERVICE_STATUS in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from zeek_agent.platforms import winapi

STOPPED: Final = 1
START_PENDING: Final = 2
STOP_PENDING: Final = 3
RUNNING: Final = 4
STATES: Final = {1: "stopped", 2: "starting", 3: "stopping", 4: "running", 5: "resuming", 6: "pausing", 7: "paused"}

_OWN_PROCESS: Final = 0x10
_AUTO_START: Final = 2
_ERROR_NORMAL: Final = 1
_ACCEPT_STOP_AND_SHUTDOWN: Final = 0x5
_CONTROL_STOP: Final = 1
_CONTROL_INTERROGATE: Final = 4
_CONTROL_SHUTDOWN: Final = 5
_ALL_ACCESS: Final = 0xF_01FF
_MANAGER_CONNECT: Final = 0x1
_MANAGER_CREATE: Final = 0x2
_DOES_NOT_EXIST: Final = 1060
_ALREADY_RUNNING: Final = 1056
_NOT_ACTIVE: Final = 1062
_NOT_STARTED_AS_SERVICE: Final = 1063
_CALL_NOT_IMPLEMENTED: Final = 120
_SPECIFIC_ERROR: Final = 1066
_STATUS_OF_PROCESS: Final = 0
_SYNCHRONIZE: Final = 0x10_0000
_NO_SUCH_PROCESS: Final = 87
_WAIT_TIMEOUT: Final = 0x102
_DESCRIPTION: Final = 1
_FAILURE_ACTIONS: Final = 2
_ACTION_RESTART: Final = 1
_WAIT_HINT_MILLISECONDS: Final = 30_000
_POLL_SECONDS: Final = 0.1
_REQUEST_AGAIN_SECONDS: Final = 0.5
_RESTARTS_MILLISECONDS: Final = (1_000, 10_000, 60_000)
_RESTARTS_FORGOTTEN_SECONDS: Final = 3_600


class NotAServiceError(OSError):
    """The program was not started by the service control manager."""


class _Status(ctypes.Structure):
    _fields_ = (
        ("dwServiceType", ctypes.c_uint32),
        ("dwCurrentState", ctypes.c_uint32),
        ("dwControlsAccepted", ctypes.c_uint32),
        ("dwWin32ExitCode", ctypes.c_uint32),
        ("dwServiceSpecificExitCode", ctypes.c_uint32),
        ("dwCheckPoint", ctypes.c_uint32),
        ("dwWaitHint", ctypes.c_uint32),
    )


class _ProcessStatus(ctypes.Structure):
    _fields_ = (*_Status._fields_, ("dwProcessId", ctypes.c_uint32), ("dwServiceFlags", ctypes.c_uint32))


class _Action(ctypes.Structure):
    _fields_ = (("Type", ctypes.c_int), ("Delay", ctypes.c_uint32))


class _FailureActions(ctypes.Structure):
    _fields_ = (
        ("dwResetPeriod", ctypes.c_uint32),
        ("lpRebootMsg", ctypes.c_wchar_p),
        ("lpCommand", ctypes.c_wchar_p),
        ("cActions", ctypes.c_uint32),
        ("lpsaActions", ctypes.POINTER(_Action)),
    )


class _Description(ctypes.Structure):
    _fields_ = (("lpDescription", ctypes.c_wchar_p),)


class _TableEntry(ctypes.Structure):
    _fields_ = (("lpServiceName", ctypes.c_wchar_p), ("lpServiceProc", ctypes.c_void_p))


def install(name: str, shown: str, description: str, command: str) -> None:
    """Create a service that starts with the system, or change its command. Raises OSError."""
    api = _api()
    with _manager(_MANAGER_CONNECT | _MANAGER_CREATE) as manager:
        service = api.OpenServiceW(manager, ctypes.c_wchar_p(name), _ALL_ACCESS)
        if service:
            _change_command(api, service, shown, command)
        else:
            arguments = (_ALL_ACCESS, _OWN_PROCESS, _AUTO_START, _ERROR_NORMAL, ctypes.c_wchar_p(command))
            texts = (ctypes.c_wchar_p(name), ctypes.c_wchar_p(shown))
            service = api.CreateServiceW(manager, *texts, *arguments, None, None, None, None, None)
        if not service:
            raise winapi.last_error(name)
        try:
            _describe(api, service, description)
        finally:
            api.CloseServiceHandle(ctypes.c_void_p(service))


def start(name: str, timeout_seconds: float = 30.0) -> None:
    """Start a service and wait until it runs. Raises OSError, TimeoutError."""
    with _service(name) as service:
        if not _api().StartServiceW(service, 0, None) and _last_number() != _ALREADY_RUNNING:
            raise winapi.last_error(name)
        _wait_for(name, service, RUNNING, timeout_seconds)


def stop(name: str, timeout_seconds: float = 30.0) -> None:
    """Stop a service and wait until its process, which has files open, has ended. Raises OSError, TimeoutError."""
    with _service(name) as service, _process_of(name, service) as process:
        status = _Status()
        if not _api().ControlService(service, _CONTROL_STOP, ctypes.byref(status)) and _last_number() != _NOT_ACTIVE:
            raise winapi.last_error(name)
        _wait_for(name, service, STOPPED, timeout_seconds)
        if process is not None:
            _wait_for_end(name, process, timeout_seconds)


def delete(name: str) -> None:
    """Remove a stopped service. Raises OSError."""
    with _service(name) as service:
        if not _api().DeleteService(service):
            raise winapi.last_error(name)


def state(name: str) -> int | None:
    """The state of a service, such as RUNNING; None if there is none of that name. Raises OSError."""
    try:
        with _service(name) as service:
            return _state_of(name, service)
    except OSError as error:
        if getattr(error, "winerror", None) == _DOES_NOT_EXIST:
            return None
        raise


class StartedService:
    """This program as a service: threads for the control manager, and the main thread for the work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._failure: OSError | None = None
        self._stop: Callable[[], None] | None = None
        self._exit_code = 0
        self._handle: Any = None
        self._state = START_PENDING
        self._callbacks: list[Any] = []
        """Functions that the control manager calls, which must live as long as the program."""

    def run(self, work: Callable[[], int], stop: Callable[[], None]) -> int:
        """Do the work in this thread and report its exit code.

        `stop` asks the work to end, and is called again and again until it has. Raises NotAServiceError.
        """
        self._stop = stop
        dispatcher = threading.Thread(target=self._dispatch, name="service-control", daemon=True)
        dispatcher.start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure
        self._exit_code = 1
        try:
            self._exit_code = work()
        finally:
            self._ended.set()
            dispatcher.join()
        return self._exit_code

    def _dispatch(self) -> None:
        entry = _callback(None, ctypes.c_uint32, ctypes.c_void_p)(self._main)
        self._callbacks.append(entry)
        table = (_TableEntry * 2)(_TableEntry(self._name, ctypes.cast(entry, ctypes.c_void_p)), _TableEntry(None, None))
        if not _api().StartServiceCtrlDispatcherW(table):
            error = winapi.last_error(self._name)
            is_console = getattr(error, "winerror", None) == _NOT_STARTED_AS_SERVICE
            self._failure = NotAServiceError(str(error)) if is_console else error
            self._begun.set()

    def _main(self, _: int, __: Any) -> None:
        kinds = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
        handler = _callback(*kinds)(self._control)
        self._callbacks.append(handler)
        self._handle = _api().RegisterServiceCtrlHandlerExW(ctypes.c_wchar_p(self._name), handler, None)
        if not self._handle:
            self._failure = winapi.last_error(self._name)
            self._begun.set()
            return
        self._report(RUNNING)
        self._begun.set()
        self._ended.wait()
        self._report(STOPPED)

    def _control(self, control: int, _: int, __: Any, ___: Any) -> int:
        if control in (_CONTROL_STOP, _CONTROL_SHUTDOWN):
            self._report(STOP_PENDING)
            threading.Thread(target=self._ask_to_stop, name="service-stop", daemon=True).start()
            return 0
        if control == _CONTROL_INTERROGATE:
            self._report(self._state)
            return 0
        return _CALL_NOT_IMPLEMENTED

    def _ask_to_stop(self) -> None:
        assert self._stop is not None
        self._stop()
        while not self._ended.wait(_REQUEST_AGAIN_SECONDS):
            self._stop()

    def _report(self, state: int) -> None:
        self._state = state
        failed = state == STOPPED and self._exit_code != 0
        status = _Status(
            dwServiceType=_OWN_PROCESS,
            dwCurrentState=state,
            dwControlsAccepted=_ACCEPT_STOP_AND_SHUTDOWN if state == RUNNING else 0,
            dwWin32ExitCode=_SPECIFIC_ERROR if failed else 0,
            dwServiceSpecificExitCode=self._exit_code if failed else 0,
            dwCheckPoint=1 if state == STOP_PENDING else 0,
            dwWaitHint=_WAIT_HINT_MILLISECONDS if state == STOP_PENDING else 0,
        )
        _api().SetServiceStatus(ctypes.c_void_p(self._handle), ctypes.byref(status))


def _api() -> Any:
    api = winapi.library("advapi32")
    for function in ("OpenSCManagerW", "OpenServiceW", "CreateServiceW", "RegisterServiceCtrlHandlerExW"):
        getattr(api, function).restype = ctypes.c_void_p
    for function in ("OpenServiceW", "CreateServiceW"):
        getattr(api, function).argtypes = None
    return api


def _callback(*kinds: Any) -> Any:
    if sys.platform == "win32":
        return ctypes.WINFUNCTYPE(*kinds)
    raise winapi.NotWindowsError("kernel32")


@contextmanager
def _manager(access: int) -> Iterator[ctypes.c_void_p]:
    manager = _api().OpenSCManagerW(None, None, access)
    if not manager:
        raise winapi.last_error("service control manager")
    try:
        yield ctypes.c_void_p(manager)
    finally:
        _api().CloseServiceHandle(ctypes.c_void_p(manager))


@contextmanager
def _service(name: str) -> Iterator[ctypes.c_void_p]:
    with _manager(_MANAGER_CONNECT) as manager:
        service = _api().OpenServiceW(manager, ctypes.c_wchar_p(name), _ALL_ACCESS)
        if not service:
            raise winapi.last_error(name)
        try:
            yield ctypes.c_void_p(service)
        finally:
            _api().CloseServiceHandle(ctypes.c_void_p(service))


def _change_command(api: Any, service: int, shown: str, command: str) -> None:
    kind = (_OWN_PROCESS, _AUTO_START, _ERROR_NORMAL, ctypes.c_wchar_p(command))
    handle = ctypes.c_void_p(service)
    if not api.ChangeServiceConfigW(handle, *kind, None, None, None, None, None, ctypes.c_wchar_p(shown)):
        raise winapi.last_error(shown)


def _describe(api: Any, service: int, description: str) -> None:
    """Set the description, and have a failed service started again."""
    actions = (_Action * len(_RESTARTS_MILLISECONDS))(
        *(_Action(_ACTION_RESTART, delay) for delay in _RESTARTS_MILLISECONDS)
    )
    restarts = _FailureActions(_RESTARTS_FORGOTTEN_SECONDS, None, None, len(actions), actions)
    handle = ctypes.c_void_p(service)
    for level, info in ((_DESCRIPTION, _Description(description)), (_FAILURE_ACTIONS, restarts)):
        if not api.ChangeServiceConfig2W(handle, level, ctypes.byref(info)):
            raise winapi.last_error(description)


def _wait_for(name: str, service: ctypes.c_void_p, wanted: int, timeout_seconds: float) -> None:
    until = time.monotonic() + timeout_seconds
    while (found := _state_of(name, service)) != wanted:
        if time.monotonic() > until or (wanted == RUNNING and found == STOPPED):
            raise TimeoutError(f"the service {name} is {STATES.get(found, found)} instead of {STATES[wanted]}")
        time.sleep(_POLL_SECONDS)


def _state_of(name: str, service: ctypes.c_void_p) -> int:
    return int(_status_of(name, service).dwCurrentState)


def _status_of(name: str, service: ctypes.c_void_p) -> _ProcessStatus:
    status, needed = _ProcessStatus(), ctypes.c_uint32()
    arguments = (ctypes.byref(status), ctypes.sizeof(status), ctypes.byref(needed))
    if not _api().QueryServiceStatusEx(service, _STATUS_OF_PROCESS, *arguments):
        raise winapi.last_error(name)
    return status


@contextmanager
def _process_of(name: str, service: ctypes.c_void_p) -> Iterator[ctypes.c_void_p | None]:
    """A handle to wait for the service's process; None if there is none any more. Raises OSError."""
    kernel = winapi.library("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    pid = _status_of(name, service).dwProcessId
    handle = kernel.OpenProcess(_SYNCHRONIZE, 0, pid) if pid else None
    if pid and not handle and _last_number() != _NO_SUCH_PROCESS:
        raise winapi.last_error(name)
    try:
        yield ctypes.c_void_p(handle) if handle else None
    finally:
        if handle:
            kernel.CloseHandle(ctypes.c_void_p(handle))


def _wait_for_end(name: str, process: ctypes.c_void_p, timeout_seconds: float) -> None:
    result = winapi.library("kernel32").WaitForSingleObject(process, ctypes.c_uint32(round(timeout_seconds * 1_000)))
    if result == _WAIT_TIMEOUT:
        raise TimeoutError(f"the process of the service {name} has not ended")
    if result != 0:
        raise winapi.last_error(name)


def _last_number() -> int:
    if sys.platform == "win32":
        return ctypes.get_last_error()
    raise winapi.NotWindowsError("kernel32")
