"""Messages of the D-Bus wire format (D-Bus Specification, "Message Protocol"), which come from other programs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

MESSAGE_BYTES_MAX: Final = 32 << 20
"""The specification's limit is 128 MiB; a list of 10,000 units has 3 MB."""
PREFIX_BYTES: Final = 16
"""Of a message, after which its length is known."""
METHOD_RETURN: Final = 2
ERROR: Final = 3

_METHOD_CALL: Final = 1
_LITTLE: Final = ord("l")
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_DEPTH_MAX: Final = 64
"""Of values inside of values, as in the specification."""
_HEADER_BYTES_MAX: Final = 4_096
"""Of header fields: names have 255 bytes at most, and paths are not much longer."""
_NUMBERS: Final[Mapping[str, struct.Struct]] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        "y": "B",
        "n": "h",
        "q": "H",
        "i": "i",
        "u": "I",
        "x": "q",
        "t": "Q",
        "d": "d",
        "h": "I",
        "b": "I",
    }.items()
}
_ALIGNMENTS: Final = {kind: number.size for kind, number in _NUMBERS.items()} | {
    **dict.fromkeys("soa", 4),
    **dict.fromkeys("({", 8),
}
"""Types that are not listed are not aligned."""
_PREFIX: Final = struct.Struct("<BBBBII")
_LENGTH: Final = struct.Struct("<I")


class DbusError(Exception):
    """A call failed, or the other side does not speak the protocol; `name` is the error's name on the bus, if any."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class Message(NamedTuple):
    """A message that was received; `serial` is that of the call to which it is the reply, 0 for any other message.

    Its body is only decoded when it is wanted, because every user of the bus can send signals of any size.
    """

    kind: int
    serial: int
    error: str
    signature: str
    content: bytes

    def body(self) -> tuple[Any, ...]:
        """The values. Raises DbusError."""
        reader, signature = _Reader(self.content, 0), self.signature
        values = []
        while signature:
            one = _first_type(signature)
            values.append(reader.value(one))
            signature = signature[len(one) :]
        return tuple(values)


def method_call(serial: int, destination: str, path: str, interface: str, member: str, *arguments: str) -> bytes:
    """A call with texts as arguments."""
    body = _Writer()
    for argument in arguments:
        body.text(argument)
    fields = _Writer()
    for code, kind, value in (
        (_PATH, "o", path),
        (_INTERFACE, "s", interface),
        (_MEMBER, "s", member),
        (_DESTINATION, "s", destination),
        (_SIGNATURE, "g", "s" * len(arguments)),
    ):
        fields.align(8)
        fields.content += bytes([code])
        fields.signature(kind)
        fields.signature(value) if kind == "g" else fields.text(value)
    header = _Writer()
    header.content += _PREFIX.pack(_LITTLE, _METHOD_CALL, 0, 1, len(body.content), serial)
    header.content += _LENGTH.pack(len(fields.content)) + fields.content
    header.align(8)
    return bytes(header.content + body.content)


def message_bytes(prefix: bytes | bytearray) -> int:
    """The length of the message that begins with these `PREFIX_BYTES`. Raises DbusError."""
    endian, _, _, version, body, _ = _PREFIX.unpack_from(prefix)
    if endian != _LITTLE or version != 1:
        raise DbusError("a message is not in version 1 of the protocol, or not little-endian")
    (fields,) = _LENGTH.unpack_from(prefix, _PREFIX.size)
    length = -(-(PREFIX_BYTES + fields) // 8) * 8 + body
    if length > MESSAGE_BYTES_MAX or fields > _HEADER_BYTES_MAX:
        raise DbusError(f"a message has more than {MESSAGE_BYTES_MAX} bytes, or a header of {fields} bytes")
    return int(length)


def parse(message: bytes) -> Message:
    """A whole message. Raises DbusError."""
    body_bytes = _PREFIX.unpack_from(message)[4]
    fields = dict(_Reader(message, _PREFIX.size).value("a(yv)"))
    signature = fields.get(_SIGNATURE, "")
    serial, error = fields.get(_REPLY_SERIAL, 0), fields.get(_ERROR_NAME, "")
    if not isinstance(signature, str) or not isinstance(serial, int) or not isinstance(error, str):
        raise DbusError("a header field has the wrong type")
    return Message(message[1], serial, error, signature, message[len(message) - body_bytes :])


class _Writer:
    def __init__(self) -> None:
        self.content = bytearray()

    def align(self, size: int) -> None:
        self.content += bytes(-len(self.content) % size)

    def text(self, text: str) -> None:
        raw = text.encode()
        self.align(4)
        self.content += _LENGTH.pack(len(raw)) + raw + b"\0"

    def signature(self, text: str) -> None:
        self.content += bytes([len(text)]) + text.encode() + b"\0"


class _Reader:
    """Reads values one after the other; all offsets are checked."""

    def __init__(self, content: bytes, offset: int) -> None:
        self._content = content
        self._offset = offset
        self._texts: Mapping[str, Callable[[], str]] = {"s": self._text, "o": self._text, "g": self._signature}

    def value(self, kind: str, depth: int = 0) -> Any:
        """The next value, of one complete type. Raises DbusError."""
        if depth > _DEPTH_MAX:
            raise DbusError("values are nested too deeply")
        first = kind[0]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in self._texts:
            return self._texts[first]()
        if first == "v":
            signature = self._signature()
            if _first_type(signature) != signature:
                raise DbusError("a variant does not have exactly one type")
            return self.value(signature, depth + 1)
        if first == "a":
            return self._array(kind[1:], depth)
        self._align(8)
        values, inner = [], kind[1:-1]
        while inner:
            one = _first_type(inner)
            values.append(self.value(one, depth + 1))
            inner = inner[len(one) :]
        return tuple(values)

    def _array(self, element: str, depth: int) -> list[Any]:
        length = self._number(_LENGTH)
        self._align(_ALIGNMENTS.get(element[0], 1))
        end = self._offset + length
        if end > len(self._content):
            raise DbusError("an array is longer than its message")
        values = []
        while self._offset < end:
            values.append(self.value(element, depth + 1))
        if self._offset != end:
            raise DbusError("an array ends inside of a value")
        return values

    def _number(self, number: struct.Struct) -> Any:
        self._align(number.size)
        return number.unpack(self._take(number.size))[0]

    def _text(self) -> str:
        return self._terminated(self._number(_LENGTH))

    def _signature(self) -> str:
        return self._terminated(self._take(1)[0])

    def _terminated(self, length: int) -> str:
        raw = self._take(length + 1)
        if raw[-1]:
            raise DbusError("a text does not end with a zero byte")
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError:
            raise DbusError("a text is not in UTF-8") from None

    def _align(self, size: int) -> None:
        self._offset += -self._offset % size

    def _take(self, length: int) -> bytes:
        end = self._offset + length
        if end > len(self._content):
            raise DbusError("a value is longer than its message")
        taken = self._content[self._offset : end]
        self._offset = end
        return taken


def _first_type(signature: str) -> str:
    """The first complete type of a signature. Raises DbusError."""
    depth, end = 0, 0
    for end, character in enumerate(signature, 1):
        if character in "({":
            depth += 1
        elif character in ")}":
            depth -= 1
        elif character != "a" and character not in _NUMBERS and character not in "sogv":
            break
        if depth == 0 and character != "a":
            one = signature[:end]
            if "()" in one or "{}" in one or one.startswith((")", "}")):
                break
            return one
        if depth < 0 or end > 255:
            break
    raise DbusError(f"not a type: {signature[:end]!r}")
