"""The package's scripts for tables, written from the default query pack.

python zeek/generate.py            writes them to zeek/scripts/table
python zeek/generate.py --check    exits with 1 when that would change something
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Final

from zeekscript import Script

from zeek_agent.collector import pack_file, zeek_script

TABLES: Final = Path(__file__).parent / "scripts" / "table"
MARK: Final = "# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.\n"

BY_HAND: Final = {
    "zeek-agent-files": "files",
    "zeek-agent-ssh-configs": "ssh",
    "zeek-agent-ssh-authorized-keys": "ssh",
}
"""Scripts that ask one query for each path of an option, which a pack cannot say, by their logs."""


def main() -> int:
    wanted = scripts()
    stale = [path for path in sorted(TABLES.glob("*.zeek")) if path not in wanted and _is_generated(path)]
    stale += [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"zeek/scripts/table/{path.name} is stale: run `make docs`\n")
        return 1 if stale else 0
    for path in stale:
        if path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
    return 0


def scripts() -> dict[Path, str]:
    """The text of each generated script."""
    texts = {}
    stems = set(BY_HAND.values())
    for stem, (logs, text) in zeek_script.package_scripts(*pack_file.load()).items():
        if BY_HAND.keys().isdisjoint(logs):
            texts[TABLES / f"{stem}.zeek"] = formatted(MARK + "\n" + text)
            stems.add(stem)
    texts[TABLES / "__load__.zeek"] = MARK + "\n" + "".join(f"@load ./{stem}\n" for stem in sorted(stems))
    return texts


def formatted(text: str) -> str:
    """The script as `zeek-script format` has it."""
    script = Script(io.BytesIO(text.encode()))
    script.parse()
    output = io.BytesIO()
    script.format(output)
    return output.getvalue().decode()


def _is_generated(path: Path) -> bool:
    return path.read_text().startswith(MARK)


if __name__ == "__main__":
    sys.exit(main())
