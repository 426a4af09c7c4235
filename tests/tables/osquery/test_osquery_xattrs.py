"""osquery's table extended_attributes."""

from __future__ import annotations

import base64
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from asking_sql import ask_sql, rows_of

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.host.files.extended_attributes import capabilities_text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("contents")
    try:
        os.setxattr(path, "user.test", b"")
        os.removexattr(path, "user.test")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    return path


def shown(file: Path, key: str) -> bytes:
    """An attribute's value as getfattr(1) shows it."""
    command = ["getfattr", "--only-values", "--absolute-names", "--name", key, file]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_values_are_those_that_getfattr_shows(file: Path) -> None:
    values = {
        "user.zero": b"text with a zero byte\0",
        "user.plain": b"text without",
        "user.binary": bytes(range(256)),
        "user.lines": b"two\nlines\0",
        "user.empty": b"",
    }
    for key, value in values.items():
        os.setxattr(file, key, value)
    rows = rows_of(f"SELECT * FROM extended_attributes WHERE path = '{file}' AND key LIKE 'user.%'")
    assert {row["key"] for row in rows} == set(values)
    for row in rows:
        value = shown(file, row["key"])
        assert value == values[row["key"]]
        if row["key"] == "user.zero":
            assert (row["value"].encode() + b"\0", row["base64"]) == (value, 0)
        else:
            assert (base64.b64decode(row["value"]), row["base64"]) == (value.removesuffix(b"\0"), 1)
        assert (row["path"], row["directory"]) == (str(file), str(file.parent))


def test_a_set_and_a_removed_attribute_are_seen(file: Path) -> None:
    statement = f"SELECT key FROM extended_attributes WHERE path = '{file}' AND key = 'user.mark'"
    assert rows_of(statement) == []
    subprocess.run(["setfattr", "--name", "user.mark", "--value", "x", file], check=True)
    assert rows_of(statement) == [{"key": "user.mark"}]
    subprocess.run(["setfattr", "--remove", "user.mark", file], check=True)
    assert rows_of(statement) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="sets file capabilities")
@pytest.mark.parametrize(
    "capabilities",
    [
        "cap_net_raw=ep",
        "cap_net_raw,cap_net_admin,cap_checkpoint_restore=p",
        "cap_chown=ei",
        "cap_chown=p cap_fowner=i",
        "=p",
        "=ep cap_chown-ep",
        "=p cap_chown-p cap_fowner+i",
    ],
)
def test_capabilities_read_as_getcap_prints_them(file: Path, capabilities: str) -> None:
    subprocess.run(["setcap", capabilities, file], check=True)
    (row,) = rows_of(f"SELECT value, base64 FROM extended_attributes WHERE path = '{file}'")
    printed = subprocess.run(["getcap", file], capture_output=True, text=True, check=True).stdout
    assert row == {"value": printed.removeprefix(f"{file} ").strip(), "base64": 0}


@pytest.mark.parametrize("value", [b"", b"\0\0\0\2", struct.pack("<IIIII", 0x0900_0000, 0, 0, 0, 0), b"x" * 20])
def test_unknown_capabilities_are_not_decoded(value: bytes) -> None:
    assert capabilities_text(value) is None


def test_capabilities_of_a_user_namespace_are_decoded() -> None:
    assert capabilities_text(struct.pack("<IIIIII", 0x0300_0001, 1 << 13, 0, 0, 0, 100_000)) == "cap_net_raw=ep"


def test_directories_and_targets_of_links_have_attributes(file: Path) -> None:
    os.setxattr(file, "user.of", b"file\0")
    os.setxattr(file.parent, "user.of", b"directory\0")
    link = file.with_name("link")
    link.symlink_to("file")
    os.mkfifo(file.with_name("fifo"))
    rows = rows_of(f"SELECT path, value FROM extended_attributes WHERE directory = '{file.parent}' ORDER BY path")
    assert rows == [{"path": str(file), "value": "file"}, {"path": str(link), "value": "file"}]
    assert rows_of(f"SELECT value FROM extended_attributes WHERE path = '{file.parent}'") == [{"value": "directory"}]
    assert rows_of(f"SELECT path FROM extended_attributes WHERE path LIKE '{file.parent}/fi%'") == [{"path": str(file)}]


def test_denied_files_have_no_attributes(file: Path) -> None:
    denied = file.with_name("id_rsa")
    denied.touch()
    os.setxattr(denied, "user.secret", b"secret\0")
    statement = f"SELECT value FROM extended_attributes WHERE directory = '{file.parent}'"
    answer = ask_sql(statement, access=AccessPolicy(AccessSettings()))
    assert answer.rows == []
    assert answer.files.refused == 1


def test_names_may_have_any_bytes(file: Path) -> None:
    os.setxattr(file, b"user.\xff\n".decode(errors="surrogateescape"), b"x\0")
    (row,) = rows_of(f"SELECT key, value FROM extended_attributes WHERE path = '{file}'")
    assert re.fullmatch("user\\.\uefff\n", row["key"])


def test_a_file_system_without_attributes_has_no_rows() -> None:
    assert rows_of("SELECT key FROM extended_attributes WHERE path = '/proc/self/status'") == []
