"""The fields of every log, from the package's scripts, for docs/zeek.md.

python zeek/reference.py            writes them between the marks in docs/zeek.md
python zeek/reference.py --check    exits with 1 when that would change something
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SCRIPTS: Final = Path(__file__).parent / "scripts"
PAGE: Final = Path(__file__).parent.parent / "docs" / "zeek.md"
BEGIN: Final = "<!-- logs: generated -->"
END: Final = "<!-- logs: end -->"

_RECORD: Final = re.compile(
    r"^\t?(?:type|redef record) ([\w:]+)(?:: record| \+=) \{\n(.*?)^\t?\}", re.MULTILINE | re.DOTALL
)
_FIELD: Final = re.compile(r"(?m)((?:^\t+## .*\n)+)^\t+(\w+): (.+?)((?: &[^;]*)?);")
_LOG: Final = re.compile(
    r"create_stream\(\w+,\s+Log::Stream\(\$columns=(\w+),.*?\$path=\"([\w-]+)\".*?\),\s+(\w+)", re.DOTALL
)
_RENAMED: Final = re.compile(r"\[\"(\w+)\"\] = \"(\w+)\"")


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    path: str
    module: str
    fields: tuple[Field, ...]


def records(script: str) -> dict[str, list[Field]]:
    """The fields that records log, by the record's name."""
    return {
        name: [
            Field(field, kind, " ".join(re.findall(r"## (.*)", comment)))
            for comment, field, kind, attributes in _FIELD.findall(body)
            if "&log" in attributes
        ]
        for name, body in _RECORD.findall(script)
    }


def flattened(field: Field, known: dict[str, list[Field]], prefix: str = "") -> Iterator[Field]:
    """The field as Zeek writes it: a record's fields one by one."""
    if field.type in known:
        for member in known[field.type]:
            yield from flattened(member, known, f"{prefix}{field.name}.")
    else:
        yield Field(prefix + field.name, field.type, field.text)


def table_logs(script: str) -> Iterator[Log]:
    """The logs that a script for a table creates."""
    known = records(script)
    module = re.findall(r"^module (\w+);", script, re.MULTILINE)[0]
    renamed = dict(_RENAMED.findall(script))
    for info, path, columns in _LOG.findall(script):
        direct = {f"columns.{field.name}": field.name for field in known[columns]}
        fields = []
        for each in known[info]:
            for field in flattened(each, known):
                name = direct.get(field.name, field.name)
                fields.append(Field(renamed.get(name, name), field.type, field.text))
        yield Log(path, module, tuple(fields))


def logs() -> list[Log]:
    """All logs of the package, and what it adds to Zeek's own."""
    agents = records((SCRIPTS / "framework" / "agents.zeek").read_text())["Info"]
    found = [Log("zeek-agent", "ZeekAgent", tuple(agents))]
    for path in sorted((SCRIPTS / "table").glob("*.zeek")):
        if path.stem != "__load__":
            found += table_logs(path.read_text())
    for log, record in (("conn", "Conn::Info"), ("notice", "Notice::Info")):
        added = records((SCRIPTS / "attribution" / f"{log}.zeek").read_text())[record]
        found.append(Log(log, "ZeekAgent", tuple(added)))
    return found


def markdown() -> str:
    parts = []
    for log in logs():
        title = f"Additions to `{log.path}.log`" if log.path in ("conn", "notice") else f"`{log.path}.log`"
        parts += [f"### {title}", "", f"Module `{log.module}`.", "", "| Field | Type | Meaning |", "|---|---|---|"]
        parts += [f"| `{field.name}` | {field.type} | {field.text.replace('``', '`')} |" for field in log.fields]
        parts.append("")
    return "\n".join(parts)


def main() -> int:
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}\n{markdown()}{END}{tail}"
    if wanted == page:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write(f"docs/{PAGE.name} is stale: run `make docs`\n")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
