"""Layouts of structures as a compiled BPF object tells them (Documentation/bpf/btf.rst in the kernel's sources)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 13, 14, 15, 17, 19
_NAMES_ANOTHER = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag


@dataclass(frozen=True)
class Type:
    kind: int
    name: str
    size: int
    members: tuple[tuple[str, int, int], ...] = ()
    """Of a structure: name, type, offset in bits. Of an enumeration: name, 0, value."""


class Btf:
    """The types of an object file."""

    def __init__(self, path: Path) -> None:
        raw = _section(path.read_bytes(), ".BTF")
        _, _, _, header, types, types_size, strings, strings_size = struct.unpack_from("<HBBIIIII", raw)
        self._strings = raw[header + strings : header + strings + strings_size]
        self.types = [Type(0, "void", 0)]
        self._parse(raw[header + types : header + types + types_size])

    def structure(self, name: str) -> Type:
        return next(type_ for type_ in self.types if type_.kind == _STRUCT and type_.name == name)

    def leaves(self, structure: Type, at: int = 0, prefix: str = "") -> list[tuple[str, int, int]]:
        """Name, offset and size in bytes of every field, those of structures inside included."""
        found = []
        for name, type_id, bits in structure.members:
            inner = self._resolved(type_id)
            if inner.kind == _STRUCT:
                found += self.leaves(inner, at + bits // 8, f"{prefix}{name}.")
            else:
                found.append((prefix + name, at + bits // 8, self._size(type_id)))
        return found

    def _resolved(self, type_id: int) -> Type:
        found = self.types[type_id]
        return self._resolved(found.size) if found.kind in _NAMES_ANOTHER else found

    def _size(self, type_id: int) -> int:
        found = self._resolved(type_id)
        if found.kind == _ARRAY:
            ((_, element, count),) = found.members
            return self._size(element) * count
        return 8 if found.kind == _PTR else found.size

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _parse(self, raw: bytes) -> None:
        at = 0
        while at < len(raw):
            name, info, size = struct.unpack_from("<III", raw, at)
            at += 12
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            members: list[tuple[str, int, int]] = []
            if kind in {_INT, _VAR, _DECL_TAG}:
                at += 4
            elif kind == _ARRAY:
                element, _, length = struct.unpack_from("<III", raw, at)
                members.append(("", element, length))
                at += 12
            elif kind in {_STRUCT, _UNION}:
                for _ in range(count):
                    member, type_id, offset = struct.unpack_from("<III", raw, at)
                    members.append((self._name(member), type_id, offset & 0xFFFFFF))
                    at += 12
            elif kind == _ENUM:
                for _ in range(count):
                    member, value = struct.unpack_from("<Ii", raw, at)
                    members.append((self._name(member), 0, value))
                    at += 8
            elif kind == _FUNC_PROTO:
                at += 8 * count
            elif kind in {_DATASEC, _ENUM64}:
                at += 12 * count
            self.types.append(Type(kind, self._name(name), size, tuple(members)))


def _section(elf: bytes, wanted: str) -> bytes:
    (offset,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + number * size) for number in range(count)]
    strings = headers[names][4]
    for name, _, _, _, at, length in headers:
        start = strings + name
        if elf[start : elf.index(b"\0", start)] == wanted.encode():
            return elf[at : at + length]
    raise LookupError(f"no section {wanted}")
