"""ctypes binding of the system's libbpf: open, load and attach an object, and use its maps.

Only the part of <bpf/libbpf.h> and <bpf/bpf.h> that the agent needs, with libbpf 1.0's interface. If the kernel rejects
a program, the OSError contains the last lines of libbpf's log, which give the reason.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from importlib import resources
from typing import Any, Final

from zeek_agent.bpf.tracepoints import has_tracepoint, open_tracepoint

log = logging.getLogger(__name__)

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_DEBUG: Final = 2
_NO_REASONS: Final = ("processed ", "-- END PROG LOAD LOG")
_MESSAGE_BYTES: Final = 1 << 20  # the log of a refused program comes as one message, with the reason at its end
_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "libbpf_set_print": (c_void_p, [_PRINT]),
    "libbpf_num_possible_cpus": (c_int, []),
    "bpf_object__open_mem": (c_void_p, [c_char_p, c_size_t, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_map__set_initial_value": (c_int, [c_void_p, c_char_p, c_size_t]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__attach_cgroup": (c_void_p, [c_void_p, c_int]),
    "bpf_program__attach_perf_event": (c_void_p, [c_void_p, c_int]),
    "bpf_link__fd": (c_int, [c_void_p]),
    "bpf_link__destroy": (c_int, [c_void_p]),
    "bpf_iter_create": (c_int, [c_int]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_char_p, c_char_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_char_p, c_char_p, c_uint64]),
    "bpf_prog_test_run_opts": (c_int, [c_int, c_void_p]),
}

_log: deque[str] = deque(maxlen=4)
_loading = threading.Lock()


class _RunOptions(ctypes.Structure):
    """`struct bpf_test_run_opts`."""

    _fields_ = (
        ("size", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("context_in", c_void_p),
        ("context_out", c_void_p),
        ("context_size_in", c_uint32),
        ("context_size_out", c_uint32),
        ("result", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class LibbpfMissingError(OSError):
    """The system has no libbpf.so.1."""


@cache
def load_library() -> ctypes.CDLL:
    """libbpf, with its functions declared and its log captured. Raises LibbpfMissingError."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise LibbpfMissingError(f"libbpf.so.1 is missing (Debian: apt install libbpf1): {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    lib.libbpf_set_print(_callback)
    return lib


@contextmanager
def without_log() -> Iterator[None]:
    """Load objects without libbpf's log in this block, which no other thread may enter; errors have no reason then.

    Each of some thousand messages calls Python and waits for its lock, which takes long while another thread is busy.
    """
    library = load_library()
    library.libbpf_set_print(_PRINT(0))
    try:
        yield
    finally:
        library.libbpf_set_print(_callback)


def _capture(level: int, form: bytes, arguments: int) -> int:
    if level >= _DEBUG:
        return 0
    buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
    ctypes.CDLL(None).vsnprintf(buffer, c_size_t(len(buffer)), c_char_p(form), c_void_p(arguments))
    message = buffer.value.decode(errors="replace").strip()
    if message:
        told = [line for line in message.splitlines() if not line.startswith(_NO_REASONS)]
        _log.append(told[-1] if told else message)
        log.debug("%s", message)
    return 0


_callback = _PRINT(_capture)


class BpfObject:
    """A compiled object of this package, open from the start; resize its maps, then load it, then attach programs."""

    def __init__(self, name: str) -> None:
        """Open `NAME.bpf.o`. Raises FileNotFoundError if the package was built without it."""
        self.name = name
        self._library = load_library()
        self._image = resources.files(__package__).joinpath(f"{name}.bpf.o").read_bytes()
        self._links: dict[str, int] = {}
        with self._explained("open"):
            self._handle: int | None = self._library.bpf_object__open_mem(self._image, len(self._image), None)
            if not self._handle:
                raise _error("")
        self._maps = self._by_name("bpf_object__next_map", "bpf_map__name")
        self.programs = self._by_name("bpf_object__next_program", "bpf_program__name")

    def resize(self, map_name: str, entries: int) -> None:
        """Set a map's number of entries (a ring's size in bytes) before loading."""
        self._check(self._library.bpf_map__set_max_entries(self._maps[map_name], entries), map_name)

    def configure(self, settings: bytes) -> None:
        """Set the object's constant `settings` before loading."""
        (handle,) = (handle for name, handle in self._maps.items() if name.endswith(".rodata"))
        size = c_size_t()
        self._library.bpf_map__initial_value(handle, ctypes.byref(size))
        padded = settings.ljust(size.value, b"\0")
        self._check(self._library.bpf_map__set_initial_value(handle, padded, size.value), "settings")

    def leave_out(self, program: str) -> None:
        """Exclude a program from loading."""
        self._check(self._library.bpf_program__set_autoload(self.programs.pop(program), False), program)

    def leave_out_missing(self) -> None:
        """Exclude programs whose tracepoints only later kernels have."""
        for program in list(self.programs):
            kind, _, tracepoint = self.section_name(program).partition("/")
            if kind == "tp_btf" and not has_tracepoint(tracepoint):
                self.leave_out(program)

    def load(self) -> None:
        """Load maps and programs into the kernel."""
        with self._explained("load"):
            self._check(self._library.bpf_object__load(self._handle), self.name)

    def attach(self, program: str, cgroup: int | None = None) -> None:
        """Attach a program to the hook of its section, or to the control group whose descriptor is `cgroup`."""
        with self._explained(f"attach {program}"):
            handle, section = self.programs[program], self.section_name(program)
            if cgroup is not None:
                link = self._library.bpf_program__attach_cgroup(handle, cgroup)
            elif section.startswith("tracepoint/"):
                _, category, name = section.split("/")
                link = self._library.bpf_program__attach_perf_event(handle, open_tracepoint(category, name))
            else:
                link = self._library.bpf_program__attach(handle)
            if not link:
                raise _error(program)
            self._links[program] = link

    def section_name(self, program: str) -> str:
        """The section of a program, which gives its type and hook."""
        name: bytes = self._library.bpf_program__section_name(self.programs[program])
        return name.decode()

    def open_iterator(self, program: str) -> int:
        """A descriptor from which an attached iterator's output can be read once."""
        fd: int = self._library.bpf_iter_create(self._library.bpf_link__fd(self._links[program]))
        if fd < 0:
            raise OSError(-fd, f"{self.name}: iterator {program}: {os.strerror(-fd)}")
        return fd

    def map_fd(self, map_name: str) -> int:
        """The descriptor of a loaded map."""
        fd: int = self._library.bpf_map__fd(self._maps[map_name])
        return fd

    def program_fd(self, program: str) -> int:
        """The descriptor of a loaded program."""
        fd: int = self._library.bpf_program__fd(self.programs[program])
        return fd

    def run(self, program: str, context: bytes) -> None:
        """Run a program of the section `syscall` now, with this context."""
        buffer = ctypes.create_string_buffer(context, len(context))
        options = _RunOptions(
            size=ctypes.sizeof(_RunOptions),
            context_in=ctypes.cast(buffer, c_void_p),
            context_size_in=len(context),
        )
        result = self._library.bpf_prog_test_run_opts(self.program_fd(program), ctypes.byref(options))
        self._check(result, f"run {program}")

    def update_element(self, map_name: str, key: bytes, value: bytes) -> None:
        """Set an element of a map."""
        self._check(self._library.bpf_map_update_elem(self.map_fd(map_name), key, value, 0), map_name)

    def per_cpu_counters(self, map_name: str, count: int) -> list[int]:
        """The `count` 64-bit counters in the only element of a per-CPU array, summed over the CPUs."""
        cpus = self._library.libbpf_num_possible_cpus()
        values = (c_uint64 * (cpus * count))()
        element = self.map_fd(map_name), bytes(4), ctypes.cast(values, c_char_p)
        self._check(self._library.bpf_map_lookup_elem(*element), map_name)
        return [sum(values[kind::count]) for kind in range(count)]

    def close(self) -> None:
        """Detach everything and release the kernel's memory. May be called twice."""
        for link in self._links.values():
            self._library.bpf_link__destroy(link)
        self._links.clear()
        if self._handle:
            self._library.bpf_object__close(self._handle)
            self._handle = None
        self._maps.clear()  # what they refer to is freed
        self.programs.clear()

    def _by_name(self, following: str, name_of: str) -> dict[str, int]:
        named: dict[str, int] = {}
        item = getattr(self._library, following)(self._handle, None)
        while item:
            named[getattr(self._library, name_of)(item).decode()] = item
            item = getattr(self._library, following)(self._handle, item)
        return named

    def _check(self, result: int, subject: str) -> None:
        if result < 0:
            raise _error(f"{self.name}: {subject}")

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        with _loading:
            _log.clear()
            try:
                yield
            except OSError as error:
                code = error.errno or errno.EINVAL
                reasons = "; ".join(_log) or error.strerror
                raise OSError(code, f"BPF object {self.name}: cannot {action}: {reasons}") from None


def _error(subject: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{subject}: {os.strerror(code)}")
