"""The id of the boot, from a C library that the test provides."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import pytest

from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.macos.boot_session import read_boot_session

pytestmark = pytest.mark.documented_shape


class Library:
    """A C library with sysctlbyname(3)."""

    def __init__(self, value: bytes, error: int = 0) -> None:
        self._value = value
        self._error = error

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: Any, new_size: ctypes.c_size_t) -> int:
        assert (name, new, new_size.value) == (b"kern.bootsessionuuid", None, 0)
        if self._error:
            ctypes.set_errno(self._error)
            return -1
        value.value = self._value
        return 0


def test_an_entity_id_has_the_beginning_of_the_boots_uuid() -> None:
    boot = read_boot_session(Library(b"4F3A9C21-D07B-4A5E-9C11-0123456789AB"))
    assert boot == "4f3a9c21-d07b-4a5e-9c11-0123456789ab"
    assert entity_id(boot, 321, 1_772_366_400_250_000) == "4f3a9c21d07b-321-1772366400250000"


@pytest.mark.parametrize("value", [b"", b"none", b"\xff" * 36, b"4F3A9C21-D07B"])
def test_anything_but_a_uuid_is_an_error(value: bytes) -> None:
    with pytest.raises(OSError, match="is not a UUID"):
        read_boot_session(Library(value))


def test_an_error_of_the_library_names_the_value() -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot read kern\.bootsessionuuid"):
        read_boot_session(Library(b"", errno.ENOENT))


def test_another_systems_library_is_an_error() -> None:
    with pytest.raises(OSError, match="it is not macOS"):
        read_boot_session(object())
