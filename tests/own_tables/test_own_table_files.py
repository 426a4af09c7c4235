"""Files that declare own tables: what is accepted, and that anything else is refused with its place and reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_table_files import declared, roots_directory

from zeek_agent.containment.messages import encode
from zeek_agent.errors import UsageError
from zeek_agent.own_tables import files
from zeek_agent.own_tables.declarations import CommandTable, FileTable, FollowedTable, decode
from zeek_agent.own_tables.snapshots import tables

pytestmark = pytest.mark.root

COLUMN = 'columns = [{name = "device", type = "text", summary = "the device"}]\n'
COMMAND = f'[tables.disks]\nsummary = "disks"\ncommand = ["/usr/bin/true"]\n{COLUMN}'
ALL = f"""
{COMMAND}
[tables.fstab]
summary = "file systems"
files = "/etc/fstab"
columns = [
    {{name = "device", type = "text", summary = "what is mounted"}},
    {{name = "file", type = "text", summary = "the file", source = "path"}},
]

[tables.jobs_events]
summary = "jobs that ended"
follow = "/var/log/jobs.jsonl"
columns = [{{name = "seconds", type = "interval", summary = "how long", source = ["took", "ms"], unit = "ms"}}]
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with roots_directory() as directory:
        yield directory


def refusal(path: str, **arguments: list[str]) -> str:
    with pytest.raises(UsageError) as refused:
        files.load([path], **arguments)
    return str(refused.value)


def test_the_three_kinds_of_tables_are_declared_by_their_keys(place: Path) -> None:
    found = files.load([declared(place, ALL)])
    assert [type(one) for one in found] == [CommandTable, FileTable, FollowedTable]
    made = tables(decode(encode(found)))
    assert [(table.name, table.kind) for table in made] == [
        ("disks", "snapshot"),
        ("fstab", "snapshot"),
        ("jobs_events", "events"),
    ]
    assert [(column.name, column.type) for column in made[2].columns] == [
        ("time", "time"),
        ("seconds", "interval"),
        ("seq", "count"),
    ]
    assert made[0].privileges.programs == ("/usr/bin/true",)
    assert made[0].description.startswith("One row per object in the output of /usr/bin/true.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tables.disks\n", "not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 14)"),
        ("x = 1\n", "unknown key 'x'"),
        ("tables = 3\n", r"tables are declared by [tables.NAME]"),
        (COMMAND.replace("disks]", '"Disks"]'), "'Disks' is not a name"),
        (COMMAND.replace("disks]", '"a b"]'), "'a b' is not a name"),
        (COMMAND.replace("disks]", '"\\u0000"]'), r"'\x00' is not a name"),
        (COMMAND.replace("disks]", '"\\u202edisks"]'), r"'\u202edisks' is not a name"),
        (COMMAND.replace("disks]", f"{'d' * 65}]"), "is not a name"),
        (COMMAND.replace("disks]", "select]"), "the name is a keyword of SQL"),
        (COMMAND.replace("disks]", "zeek_agent_disks]"), "names may neither begin with"),
        (COMMAND.replace("disks]", "disks_history]"), "nor end with _history"),
        (COMMAND.replace("command", "comand"), "exactly one of the keys command, files, follow is needed"),
        (COMMAND + 'files = "/etc/fstab"\n', "exactly one of the keys"),
        (COMMAND + "shell = true\n", "unknown key 'shell'"),
        (COMMAND + 'name = "other"\n', "the name is that of the section"),
        (COMMAND.replace('["/usr/bin/true"]', '"/usr/bin/true"'), "Expected `array`, got `str` (at command)"),
        (COMMAND.replace('["/usr/bin/true"]', "[]"), "command: expected a program"),
        (COMMAND.replace("/usr/bin/true", "true"), "command: programs: not an absolute path: 'true'"),
        (COMMAND.replace("/usr/bin/true", "/usr/bin/../bin/true"), "command: programs: not a plain path to a file"),
        (COMMAND.replace("/usr/bin/true", '/usr/bin/true", "a\\u0000b'), "command: an argument contains a NUL"),
        (COMMAND + "timeout = -1.0\n", "timeout: expected more than 0"),
        (COMMAND + "timeout = nan\n", "timeout: expected more than 0"),
        (COMMAND + "output_bytes = 1000000000000\n", "output_bytes: expected up to 16777216"),
        (COMMAND + 'format = "xml"\n', "Invalid enum value 'xml' (at format)"),
        (COMMAND + 'format = "csv"\nrows = ["a"]\n', "rows: only for the format json"),
        (COMMAND.replace('"text"', '"string"'), "column 'device': not a Zeek type: 'string'"),
        (COMMAND.replace('"device"', '"de-vice"'), "column 'de-vice': 'de-vice' is not a name"),
        (COMMAND.replace("[{", '[{name = "device", type = "int", summary = "x"}, {'), "it is declared twice"),
        (COMMAND.replace('summary = "the device"', 'summary = "a\\nb"'), "summary: expected a line"),
        (COMMAND.replace('summary = "disks"', 'summary = ""'), "summary: expected a line"),
        (COMMAND.replace('summary = "disks"\n', ""), "the key summary is missing"),
        (COMMAND.replace("}]", ', unit = "ms"}]'), "unit: only for the types time and interval"),
        (COMMAND.replace("}]", ", source = 1}]"), "source: expected a key"),
        (COMMAND.replace("}]", ', sourc = "a"}]'), "unknown key 'sourc' (at columns[0])"),
        (ALL.replace("/etc/fstab", "etc/fstab"), "table 'fstab': files: expected an absolute path"),
        (ALL.replace("/etc/fstab", "/etc/../root/x"), "files: expected an absolute path without `..`"),
        (ALL.replace('"path"', '"where"'), "source: expected the number of a field up to 200"),
        (ALL.replace('"/etc/fstab"', '"/etc/fstab"\nignore = "("'), "ignore: '(' is not a valid regular expression"),
        (ALL.replace("/var/log/jobs.jsonl", "/var/log/"), "follow: expected the path of a file"),
        (ALL.replace('"seconds"', '"seq"'), "event tables have a column of that name already"),
        (ALL.replace('"seconds"', '"time"'), "the column time is of type time"),
        (ALL.replace('"seconds"', '"argv"'), "the column argv is a vector or a set"),
        (ALL + ALL.replace("[tables.disks]", "[tables.other]").split("[tables.fstab]")[0].replace("other", "disks"),
         "not valid TOML"),
        (f"[tables.a]\nx = {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
        (f"[tables.a]\nx = {'9' * 5000}\n", "not valid TOML"),
        ("#" + "x" * files.FILE_BYTES_MAX, "larger than 1048576 bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_the_whole_file_refused(text: str, reason: str, place: Path) -> None:
    path = declared(place, text)
    message = refusal(path)
    assert message.startswith(path)
    assert reason in message


def test_bytes_that_are_not_text_are_refused(place: Path) -> None:
    path = place / "tables.toml"
    path.write_bytes(b"[tables.disks]\nsummary = '\xff'\n")
    assert "not valid TOML" in refusal(str(path))
    path.write_bytes(b"\x00" * 100)
    assert "not valid TOML" in refusal(str(path))


def test_names_and_kinds_of_the_agent_are_taken(place: Path) -> None:
    path = declared(place, ALL)
    assert refusal(path, taken=["fstab"]) == f"{path}: table fstab: the agent has a table of that name already"
    assert "the agent has events of the kind jobs already" in refusal(path, kinds=["jobs"])
    other = declared(place, COMMAND, "other.toml")
    with pytest.raises(UsageError, match=rf"table disks: it is also declared in {path}"):
        files.load([path, other])


def test_a_declaration_of_another_user_or_writable_by_others_is_refused(place: Path) -> None:
    path = Path(declared(place, ALL))
    for mode in (0o664, 0o646, 0o666):
        path.chmod(mode)
        assert f"cannot be trusted: {path} belongs to uid 0 with mode {mode:04o}" in refusal(str(path))
    path.chmod(0o644)
    os.chown(path, 1, 1)
    assert "belongs to uid 1" in refusal(str(path))
    os.chown(path, 0, 0)
    place.chmod(0o775)
    assert f"{place} belongs to uid 0 with mode 0775" in refusal(str(path))
    place.chmod(0o755)
    assert len(files.load([str(path)])) == 3


def test_a_declaration_in_a_directory_that_all_may_write_to_is_refused(tmp_path: Path) -> None:
    assert "/tmp belongs to uid 0 with mode 1777" in refusal(declared(tmp_path, ALL))


def test_links_are_followed_only_if_nobody_else_could_have_made_them(place: Path, tmp_path: Path) -> None:
    path = declared(place, ALL)
    link = place / "link.toml"
    link.symlink_to("tables.toml")
    assert len(files.load([str(link)])) == 3
    os.chown(link, 1, 1, follow_symlinks=False)
    assert f"{link} belongs to uid 1" in refusal(str(link))
    elsewhere = tmp_path / "link.toml"
    elsewhere.symlink_to(path)
    assert "/tmp belongs to uid 0 with mode 1777" in refusal(str(elsewhere))
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1, 1)
    (theirs / "link.toml").symlink_to(path)
    (place / "indirect.toml").symlink_to("theirs/link.toml")
    assert f"{theirs} belongs to uid 1" in refusal(str(place / "indirect.toml"))
    loop = place / "loop.toml"
    loop.symlink_to("loop.toml")
    assert "Too many levels of symbolic links" in refusal(str(loop))


def test_what_is_not_a_file_is_refused_without_waiting(place: Path) -> None:
    os.mkfifo(place / "fifo")
    assert "is not a regular file" in refusal(str(place / "fifo"))
    assert "is not a regular file" in refusal(str(place))
    assert "cannot be trusted" in refusal("/dev/zero")
    assert "cannot be read: No such file or directory" in refusal(str(place / "absent"))


def test_the_number_of_tables_is_bounded(place: Path) -> None:
    many = "".join(COMMAND.replace("disks", f"disks{number}") for number in range(files.TABLES_MAX + 1))
    assert refusal(declared(place, many)) == "tables.files: more than 200 tables are declared"
    one = f'summary = "x"\nfollow = "/var/log/t"\n{COLUMN}'
    followed = "".join(f"[tables.t{number}]\n{one}" for number in range(files.FOLLOWED_MAX + 1))
    assert refusal(declared(place, followed)) == "tables.files: more than 32 tables follow a file"
