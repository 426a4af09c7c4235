"""Private keys in text files are masked line by line; nothing else is."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterable
from io import FileIO
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeek_agent.host.files import contents
from zeek_agent.host.files.gate import OpenedFile, Purpose
from zeek_agent.host.files.private_keys import KeyMask
from zeek_agent.host.files.reads import FileReads

BACKDOOR = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hPQyLqgM2u0kL8h1bX0o5mW9c1P0m6m1Jb2o5T3fY someone@elsewhere"
BEGIN = b"-----BEGIN PRIVATE KEY-----"
END = b"-----END PRIVATE KEY-----"
MARKER = re.compile(rb"BEGIN |END |PuTTY-User-Key-File|Private-MAC|AGE-SECRET")

ordinary_lines = (
    st.binary(max_size=80).map(lambda raw: raw.replace(b"\n", b"")).filter(lambda line: not MARKER.search(line))
)


@st.composite
def keys(draw: st.DrawFn) -> list[bytes]:
    """The lines of a key in PEM, as files quote it."""
    kind = draw(st.sampled_from([b"", b"RSA ", b"EC ", b"ENCRYPTED ", b"OPENSSH ", b"DSA ", b"PGP "]))
    block = b" BLOCK" if kind == b"PGP " else b""
    body = base64.b64encode(draw(st.binary(min_size=48, max_size=400)))
    width = draw(st.sampled_from([64, 70, 76]))
    lines = [body[at : at + width] for at in range(0, len(body), width)]
    if draw(st.booleans()):
        lines = [b"Proc-Type: 4,ENCRYPTED", b"DEK-Info: AES-128-CBC,0123456789ABCDEF", b"", *lines]
    quote = draw(st.sampled_from([b"", b"# ", b"    ", b"> ", b"; ", b"\t", b" * "]))
    ending = draw(st.sampled_from([b"", b"\r"]))
    header, footer = b"%bPRIVATE KEY%b-----" % (kind, block), b"-----END %bPRIVATE KEY%b-----" % (kind, block)
    return [quote + line + ending for line in (b"-----BEGIN " + header, *lines, footer)]


def masked(lines: Iterable[bytes]) -> list[bytes]:
    mask = KeyMask()
    return [mask.line(line) for line in lines]


@pytest.mark.parametrize(
    "prefix",
    [
        b"2026-11-28T12:00:%02d.%06dZ stdout F ",
        b"Nov 28 12:00:%02d host app[%d]: ",
        b"[%02d.%d]\t",
    ],
    ids=["container", "syslog", "kernel"],
)
def test_the_lines_of_a_key_in_a_log_are_masked_behind_the_time(prefix: bytes) -> None:
    texts = [b"loading", BEGIN, b"Proc-Type: 4,ENCRYPTED", b"", b"MIIE" * 16, b"QQ==", END, b"done with it", b"done"]
    log = [prefix % (number, number * 997) + text for number, text in enumerate(texts)]
    mask = KeyMask(is_log=True)
    found = [mask.line(line) for line in log]
    assert [found[at] for at in (0, 7, 8)] == [log[at] for at in (0, 7, 8)]
    assert all(found[at].endswith(b"***") and found[at][:5] == log[at][:5] for at in range(1, 6))
    assert found[6] == b"***"
    assert not any(text in line for text in (b"MIIE", b"QQ==", b"ENCRYPTED") for line in found)
    unended = KeyMask(is_log=True)
    assert [unended.line(line) for line in (log[1], log[4], log[7], log[4])][2:] == [log[7], log[4]]


def test_a_prefix_hides_no_public_key_outside_of_logs() -> None:
    line = BACKDOOR.rpartition(b" ")[0]
    assert masked([b"ssh-ed25519 " + BEGIN, line, line]) == [b"ssh-ed25519 ***", line, line]


@given(st.lists(ordinary_lines))
def test_lines_outside_of_keys_are_never_changed(lines: list[bytes]) -> None:
    assert masked(lines) == lines
    assert KeyMask().may_leave_alone(b"\n".join(lines))


@given(st.lists(st.one_of(ordinary_lines.map(lambda line: [line]), keys())))
def test_every_line_of_a_key_is_masked_wherever_it_stands_and_no_other(blocks: list[list[bytes]]) -> None:
    found = iter(masked(line for block in blocks for line in block))
    for block in blocks:
        shown = [next(found) for _ in block]
        if len(block) == 1:
            assert shown == block
        else:
            assert all(b"***" in line for line in shown)
            assert not any(re.search(rb"[A-Za-z0-9+/]{4}", line) for line in shown)


class Listed(NamedTuple):
    """A file that is on the list of those whose contents may be read."""

    path: str

    def open(self, purpose: Purpose) -> OpenedFile:
        return OpenedFile(FileIO(self.path), masks_keys=True)


@settings(max_examples=25)
@given(st.integers(0, 400), keys())
def test_a_key_is_masked_also_where_a_piece_of_the_file_ends(
    tmp_path_factory: pytest.TempPathFactory, offset: int, key: list[bytes]
) -> None:
    file = tmp_path_factory.mktemp("keys") / "file"
    before = [b"x" * (contents._CHUNK_BYTES - 402), b"y" * offset]
    file.write_bytes(b"\n".join([*before, *key, b"after"]))
    found = list(contents.lines(Listed(str(file)), FileReads()))  # type: ignore[arg-type]
    assert found == masked([*before, *key, b"after"])
    assert (found[0], found[1], found[-1]) == (*before, b"after")


@pytest.mark.parametrize(
    "lines",
    [
        [b"# " + BEGIN, BACKDOOR],
        [b"# " + BEGIN, b"", b"# MIIEvQ==", BACKDOOR],
        [BEGIN, b'command="/bin/sh" ' + BACKDOOR],
        [BEGIN, b"* * * * * root /tmp/x"],
        [BEGIN, b"PermitRootLogin yes"],
        [b"PuTTY-User-Key-File-3: ssh-ed25519", BACKDOOR],
    ],
)
def test_a_header_without_an_end_does_not_hide_the_lines_after_the_key(lines: list[bytes]) -> None:
    found = masked([*lines, BACKDOOR])
    assert found[-2:] == [lines[-1], BACKDOOR]
    assert all(b"***" in line for line in found[:-2])


def test_a_header_in_a_comment_does_not_hide_the_line_that_it_stands_on() -> None:
    assert masked([BACKDOOR + b" " + BEGIN]) == [BACKDOOR + b" ***"]
    assert masked([b"a " + BEGIN + b"MIIE" + END + b" " + BACKDOOR]) == [b"a *** " + BACKDOOR]
    assert masked([BEGIN, b"MIIE", END + b" " + BACKDOOR]) == [b"***", b"***", b"*** " + BACKDOOR]


def test_lines_without_an_own_end_mark_hide_no_others() -> None:
    age = b"AGE-SECRET-KEY-1" + b"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2
    assert masked([b"# created: 2026", age, BACKDOOR]) == [b"# created: 2026", b"***", BACKDOOR]
    assert masked([END, BACKDOOR]) == [END, BACKDOOR]


def test_a_line_made_to_take_long_is_matched_like_any_other() -> None:
    hostile = [quote * 1_000_000 + b"!" for quote in (b"-", b"/", b"+", b" ", b"=", b"-----BEGIN ")]
    assert masked(line for each in hostile for line in (BEGIN, each)) == [
        line for each in hostile for line in (b"***", each)
    ]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize(
    "command",
    [
        "genpkey -algorithm ed25519",
        "genrsa -traditional 1024",
        "genrsa -traditional -aes128 -passout pass:x 1024",
        "ecparam -genkey -name prime256v1",
    ],
)
def test_keys_that_openssl_makes_are_masked(command: str) -> None:
    made = subprocess.run(["openssl", *command.split()], capture_output=True, check=True).stdout.split(b"\n")
    begin = next(number for number, line in enumerate(made) if b"PRIVATE KEY" in line)
    found = masked([*made, BACKDOOR])
    assert found == [*made[:begin], *[b"***"] * (len(made) - begin - 1), b"", BACKDOOR]
