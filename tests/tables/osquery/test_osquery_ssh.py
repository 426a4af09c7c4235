"""osquery's tables of SSH, compared with ssh-keygen, ssh and libcrypto where a user has keys."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import json
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mounting import SilentFuse, needs_fuse
from scratch_host import Rows, on_scratch_host, output, select, select_in_worker, select_with_errors

from zeek_agent.access_defaults import PATHS_DENY
from zeek_agent.host.accounts.ssh_files import authorized_key
from zeek_agent.host.files.key_properties import private_key
from zeek_agent.tables.osquery import _user_files
from zeek_agent.text import from_bytes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("ssh-keygen") is None or shutil.which("openssl") is None, reason="needs ssh-keygen"
    ),
]
SSH = Path("/home/ada/.ssh")
UID = 7100


def with_user(*names: str) -> None:
    """Make the user, and his keys of these types."""
    output("useradd", "--uid", str(UID), "--create-home", "ada")
    SSH.mkdir(mode=0o700)
    for name in names:
        output("ssh-keygen", "-q", "-t", name, "-N", "", "-C", f"comment of {name}", "-f", str(SSH / f"id_{name}"))
    give_to_user()


def give_to_user() -> None:
    output("chown", "-R", "ada:", "/home/ada")
    Path("/home/ada").chmod(0o700)


def fingerprints(file: Path) -> set[tuple[str, str]]:
    """The fingerprint of each key in a file, with its comment."""
    lines = (line.split() for line in output("ssh-keygen", "-lf", str(file)).splitlines())
    return {(words[1], " ".join(words[2:-1])) for words in lines}


def fingerprint(key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def test_a_new_authorized_key_is_listed_with_its_fingerprint_by_ssh_keygen(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, set[tuple[str, str]], set[tuple[str, str]]]:
        with_user("ed25519", "rsa", "ecdsa")
        public = [(SSH / f"id_{name}.pub").read_text() for name in ("ed25519", "rsa", "ecdsa")]
        options = 'command="mysql -phunter2 \\"a b\\"",environment="API_TOKEN=x y",environment="A=b",no-pty '
        lines = ["# " + public[0], "", options + public[0], "  " + public[1], "ssh-unknown AAAA x\n", "ssh-rsa\n"]
        (SSH / "authorized_keys").write_text("\n".join(lines))
        (SSH / "authorized_keys2").write_text(public[2])
        give_to_user()
        joined = "SELECT k.* FROM authorized_keys k JOIN osquery_users USING (uid) WHERE username = 'ada'"
        files = [fingerprints(SSH / name) for name in ("authorized_keys", "authorized_keys2")]
        return select(joined), select(f"SELECT *, pid_with_namespace FROM authorized_keys WHERE uid = {UID}"), *files

    joined, rows, first, second = on_scratch_host(scene, tmp_path)
    assert [{**row, "pid_with_namespace": None} for row in joined] == rows
    assert {(row["uid"], row["pid_with_namespace"]) for row in rows} == {(UID, None)}
    by_file = {str(SSH / "authorized_keys"): first, str(SSH / "authorized_keys2"): second}
    for file, expected in by_file.items():
        found = {(fingerprint(row["key"]), row["comment"]) for row in rows if row["key_file"] == file}
        assert found == expected
    assert [row["algorithm"] for row in rows] == ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"]
    assert [row["options"] for row in rows] == [
        'command="mysql -p*** \\"a b\\"",environment="API_TOKEN=***",environment="A=b",no-pty',
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b" \tssh-rsa AAAA\r", (b"", b"ssh-rsa", b"AAAA", b"")),
        (b"no-pty \t ssh-rsa\tAAAA  a b ", (b"no-pty", b"ssh-rsa", b"AAAA", b"a b")),
        (b'command="a\\" ssh-rsa b" ssh-dss AAAA', (b'command="a\\" ssh-rsa b"', b"ssh-dss", b"AAAA", b"")),
        (
            b"cert-authority ssh-ed25519-cert-v01@openssh.com AA",
            (b"cert-authority", b"ssh-ed25519-cert-v01@openssh.com", b"AA", b""),
        ),
        (b'a="b\\\\" ssh-rsa c" ssh-dss AAAA', (b'a="b\\\\" ssh-rsa c"', b"ssh-dss", b"AAAA", b"")),
        (b'command="never closed ssh-rsa AAAA', None),
        (b"# ssh-rsa AAAA", None),
        (b"ssh-rsa", None),
        (b"no-pty ssh-rsax AAAA", None),
        (b"", None),
    ],
)
def test_options_before_a_key_are_those_of_sshd(line: bytes, expected: tuple[bytes, ...] | None) -> None:
    assert authorized_key(line) == expected


def test_keys_of_all_local_users_are_listed_without_a_constraint(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows]:
        with_user("ed25519")
        Path("/root/.ssh").mkdir(exist_ok=True)
        for directory in (SSH, Path("/root/.ssh")):
            shutil.copy(SSH / "id_ed25519.pub", directory / "authorized_keys")
        give_to_user()
        return select("SELECT uid FROM authorized_keys"), select("SELECT uid FROM authorized_keys WHERE uid = 0")

    assert on_scratch_host(scene, tmp_path) == ([{"uid": 0}, {"uid": UID}], [{"uid": 0}])


class LibCrypto:
    """The functions by which osquery reads keys."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("crypto")
        if name is None:
            pytest.skip("needs libcrypto")
        self._library = ctypes.CDLL(name)
        if not hasattr(self._library, "EVP_PKEY_get_group_name"):
            pytest.skip("needs libcrypto of OpenSSL 3")
        for function in ("BIO_new_mem_buf", "PEM_read_bio_PrivateKey"):
            getattr(self._library, function).restype = ctypes.c_void_p

    def properties(self, content: bytes) -> tuple[int, int, str]:
        """Length, strength and group of a key without a passphrase."""
        library = self._library
        memory = ctypes.c_void_p(library.BIO_new_mem_buf(content, len(content)))
        key = ctypes.c_void_p(library.PEM_read_bio_PrivateKey(memory, None, None, None))
        assert key, "libcrypto does not read the key"
        group, size = ctypes.create_string_buffer(64), ctypes.c_size_t()
        has_group = library.EVP_PKEY_get_group_name(key, group, ctypes.c_size_t(64), ctypes.byref(size)) == 1
        bits, security = library.EVP_PKEY_get_bits(key), library.EVP_PKEY_get_security_bits(key)
        library.EVP_PKEY_free(key)
        library.BIO_free(memory)
        return bits, security, group.value.decode() if has_group else ""


GENERATED = {
    "rsa-1024": ("rsa", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024"),
    "rsa-1536": ("rsa", "genrsa -traditional 1536"),
    "rsa-2048": ("rsa", "genrsa 2048"),
    "rsa-2500": ("rsa", "genrsa -traditional 2500"),
    "rsa-pss": ("", "genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:1024"),
    "dsa": ("dsa", "genpkey -genparam -algorithm DSA -pkeyopt dsa_paramgen_bits:1024 -pkeyopt dsa_paramgen_q_bits:160"),
    "dh": ("dh", "genpkey -algorithm DHX -pkeyopt dh_rfc5114:2"),
    **{
        name: ("ec", f"ecparam -genkey -name {name}")
        for name in ("prime256v1", "secp224r1", "secp384r1", "secp521r1", "secp256k1", "brainpoolP384r1")
    },
    "ec-pkcs8": ("ec", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
    **{name: ("", f"genpkey -algorithm {name}") for name in ("ed25519", "ed448", "x25519", "x448")},
}


@pytest.mark.parametrize("name", GENERATED)
def test_properties_of_keys_are_those_of_libcrypto(name: str, tmp_path: Path) -> None:
    kind, arguments = GENERATED[name]
    content = output("openssl", *arguments.split())
    if name == "dsa":
        (tmp_path / "parameters").write_text(content)
        content = output("openssl", "genpkey", "-paramfile", str(tmp_path / "parameters"))
    found = private_key(content.encode())
    assert found is not None
    assert (found.encrypted, found.kind) == (False, kind)
    bits, security, group = LibCrypto().properties(content.encode())
    assert (found.length, found.security) == (bits, security)
    assert found.group == (group if kind == "ec" else "")


@pytest.mark.parametrize("length", [1023, 1025, 3072, 4096, 5000, 7680, 8192, 12_000, 15_360, 16_384])
def test_the_strength_of_rsa_is_that_of_libcrypto(length: int) -> None:
    def integer(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return b"\x02" + b"\x84" + len(raw).to_bytes(4, "big") + raw

    fields = b"".join(map(integer, (0, (1 << length - 1) + 1, 65_537, 3, 7, 11, 13, 17, 19)))
    der = b"\x30\x84" + len(fields).to_bytes(4, "big") + fields
    content = b"-----BEGIN RSA PRIVATE KEY-----\n%s-----END RSA PRIVATE KEY-----\n" % base64.encodebytes(der)
    found = private_key(content)
    assert found is not None
    assert (found.length, found.security) == LibCrypto().properties(content)[:2]


def test_private_keys_of_a_user_are_listed_without_their_contents(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, dict[str, str], list[str]]:
        with_user("ed25519", "rsa", "ecdsa")
        for name, options in {
            "work": ("-t", "rsa", "-b", "1024", "-N", "secret phrase", "-m", "PEM"),
            "pkcs8": ("-t", "ecdsa", "-b", "521", "-N", "secret phrase", "-m", "PKCS8"),
            ".hidden": ("-t", "ecdsa", "-b", "384", "-N", "secret phrase"),
            "pem": ("-t", "rsa", "-b", "1024", "-N", "", "-m", "PEM"),
        }.items():
            output("ssh-keygen", "-q", *options, "-f", str(SSH / name))
        (SSH / "known_hosts").write_text("host ssh-ed25519 AAAA\n")
        (SSH / "not_a_key").write_text("-----BEGIN RSA PRIVATE KEY-----\nnothing\n-----END RSA PRIVATE KEY-----\n")
        os.mkfifo(SSH / "id_fifo")
        (SSH / "id_broken").symlink_to("nowhere")
        (SSH / "id_directory").mkdir()
        give_to_user()
        private = [file for file in SSH.iterdir() if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
        usable = {}
        for file in private:
            tried = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", file], capture_output=True, check=False)
            usable[str(file)] = "" if tried.returncode else output("ssh-keygen", "-lf", f"{file}.pub").split()[0]
        secrets = [line for file in private for line in file.read_text().splitlines() if len(line) > 40]
        rows = select(f"SELECT *, pid_with_namespace FROM user_ssh_keys WHERE uid = {UID}")
        return rows, usable, secrets

    rows, usable, secrets = on_scratch_host(scene, tmp_path)
    del usable[str(SSH / "not_a_key")]
    by_path = {row["path"]: row for row in rows}
    assert sorted(by_path) == sorted(usable)
    for path, length in usable.items():
        row = by_path[path]
        assert (row["uid"], row["encrypted"], row["pid_with_namespace"]) == (UID, int(not length), None)
        assert length in {"", str(row["key_length"])}
    properties = ("encrypted", "key_type", "key_group_name", "key_length", "key_security_bits")
    assert {Path(path).name: tuple(row[name] for name in properties) for path, row in by_path.items()} == {
        "id_ed25519": (0, "", "", 256, 128),
        "id_rsa": (0, "rsa", "", 3072, 128),
        "id_ecdsa": (0, "ec", "prime256v1", 256, 128),
        "pem": (0, "rsa", "", 1024, 80),
        "work": (1, "", "", -1, -1),
        "pkcs8": (1, "", "", -1, -1),
        ".hidden": (1, "ec", "secp384r1", 384, 192),
    }
    assert len(secrets) > 20
    assert not any(secret[:20] in json.dumps(rows) for secret in secrets if "BEGIN" not in secret)


def test_of_keys_that_the_operator_denies_only_the_path_is_shown(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Any]:
        with_user("ed25519")
        shutil.copy(SSH / "id_ed25519", SSH / "work")
        rows, errors = select_with_errors("SELECT * FROM user_ssh_keys", paths_deny=(*PATHS_DENY, "/home/**"))
        return rows, errors

    rows, errors = on_scratch_host(scene, tmp_path)
    (row,) = [row for row in rows if row["uid"] == UID]
    assert row.pop("path") == str(SSH / "id_ed25519")
    assert row == {"uid": UID, **dict.fromkeys(set(row) - {"uid"})}
    assert "denied by access.paths_deny" in errors[0]


def test_known_hosts_are_listed_as_they_are_written(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, set[tuple[str, str]], Any]:
        with_user("ed25519", "rsa")
        file = SSH / "known_hosts"
        keys = [" ".join((SSH / f"id_{name}.pub").read_text().split()[:2]) for name in ("ed25519", "rsa")]
        file.write_text(f"# comment\n\n[server.example]:2222,192.0.2.7 {keys[0]}\nother.example {keys[1]}\n")
        output("ssh-keygen", "-H", "-f", str(file))
        file.chmod(0o600)
        give_to_user()
        denied = select_with_errors(f"SELECT * FROM known_hosts WHERE uid = {UID}", paths_deny=("/**/.ssh/**",))
        expected = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        rows = select("SELECT * FROM known_hosts JOIN osquery_users USING (uid) WHERE username = 'ada'")
        assert [row["key"] for row in rows] == expected
        return rows, select(f"SELECT key FROM known_hosts WHERE uid = {UID}"), fingerprints(file), denied

    rows, by_uid, expected, denied = on_scratch_host(scene, tmp_path)
    assert [row["key"] for row in rows] == [row["key"] for row in by_uid]
    assert {fingerprint(row["key"].split()[-1]) for row in rows} == {name for name, _ in expected}
    assert all(row["key"].startswith("|1|") for row in rows)
    assert {(row["uid"], row["key_file"]) for row in rows} == {(UID, str(SSH / "known_hosts"))}
    assert denied[0] == []
    assert "denied by access.paths_deny" in denied[1][0]


def test_a_link_to_another_file_shows_nothing_of_it(tmp_path: Path) -> None:
    def scene() -> list[Any]:
        with_user()
        secret = Path("/home/bob.txt")
        secret.write_text("a secret\n")
        secret.chmod(0o600)
        for name in ("known_hosts", "config", "authorized_keys"):
            (SSH / name).symlink_to(secret)
        (SSH / "id_shadow").symlink_to("/etc/shadow")
        return [
            select_with_errors(f"SELECT * FROM {table} WHERE uid = {UID}")
            for table in ("known_hosts", "ssh_configs", "authorized_keys", "user_ssh_keys")
        ]

    *refused, keys = on_scratch_host(scene, tmp_path)
    for rows, errors in refused:
        assert rows == []
        assert "contents are not on the list" in errors[0]
    assert keys == ([], [])


def test_options_of_the_client_are_those_that_ssh_uses(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, str]:
        with_user()
        (SSH / "config").write_text(
            "# comment\nUser Ada\n\nHost Server *.Example\n\tPort=2200\n  ProxyCommand curl -u bob:Hunter2 %h\n"
            'Match exec "mysql -pHunter2" user x\nCompression yes\n'
        )
        give_to_user()
        effective = output("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "ssh", "-G", "Server")
        rows = select(f"SELECT * FROM ssh_configs WHERE uid = {UID}")
        return rows, select("SELECT * FROM ssh_configs WHERE uid = 0"), effective

    rows, system, effective = on_scratch_host(scene, tmp_path)
    assert [(row["block"], row["option"]) for row in rows] == [
        ("", "user ada"),
        ("host server *.example", "port=2200"),
        ("host server *.example", "proxycommand curl -u bob:*** %h"),
        ('match exec "mysql -p***" user x', "compression yes"),
    ]
    assert {(row["uid"], row["ssh_config_file"]) for row in rows} == {(UID, str(SSH / "config"))}
    used = effective.lower().splitlines()
    assert {"user ada", "port 2200", "proxycommand curl -u bob:hunter2 %h"} <= set(used)
    file = Path("/etc/ssh/ssh_config")
    written = [line.strip().lower() for line in file.read_text().splitlines() if re.match(r"\s*[^#\s]", line)]
    written = [line for line in written if not line.startswith(("host ", "match "))]
    assert [row["option"] for row in system if row["ssh_config_file"] == str(file)] == written


def test_many_and_strange_files_of_one_user_hide_no_others(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows]:
        with_user("ed25519")
        (SSH / "id_huge").write_bytes(b"-----BEGIN RSA PRIVATE KEY-----\n" + b"A" * 5_000_000)
        (SSH / "authorized_keys").write_bytes(b"ssh-rsa \xff\xfe \x1b[2J\n" + (SSH / "id_ed25519.pub").read_bytes())
        with Path("/etc/passwd").open("ab") as passwd:
            passwd.write(b"relative:x:7200:7200::home:/bin/sh\nwild:x:7201:7201::/home/*:/bin/sh\n")
            passwd.write(b"odd:x:7202:7202::/home/a\xff[:/bin/sh\nsame:x:7203:7203::/home/ada/:/bin/sh\n")
        odd = os.fsencode("/home/") + b"a\xff["
        Path(os.fsdecode(odd), ".ssh").mkdir(parents=True)
        shutil.copy(SSH / "id_ed25519", odd + b"/.ssh/id_ed25519")
        give_to_user()
        return (
            select("SELECT uid, path, encrypted FROM user_ssh_keys WHERE uid > 7000"),
            select("SELECT uid, key, comment FROM authorized_keys WHERE uid > 7000"),
        )

    keys, authorized = on_scratch_host(scene, tmp_path)
    assert [(row["uid"], row["path"]) for row in keys] == [
        (UID, str(SSH / "id_ed25519")),
        (7202, from_bytes(b"/home/a\xff[/.ssh/id_ed25519")),
        (7203, str(SSH / "id_ed25519")),
    ]
    assert [(row["uid"], row["key"]) for row in authorized if row["comment"] != "comment of ed25519"] == [
        (UID, from_bytes(b"\xff\xfe")),
        (7203, from_bytes(b"\xff\xfe")),
    ]
    assert len(authorized) == 4


def test_a_long_block_with_many_options_ends_its_file_only(tmp_path: Path) -> None:
    def scene() -> tuple[tuple[Rows, Sequence[str]], Rows]:
        with_user()
        (SSH / "config").write_text(f"Host {'x' * (1 << 20)}\n" + "User a\n" * 1_000)
        give_to_user()
        counted = "SELECT count(*) AS n FROM ssh_configs WHERE block != '' AND uid = "
        return select_with_errors(f"{counted}{UID}"), select(f"{counted}0")

    (rows, errors), system = on_scratch_host(scene, tmp_path)
    assert rows == [{"n": 3}]
    assert "characters in the column block" in errors[0]
    assert system != [{"n": 0}]


def test_a_worker_process_shows_the_same(tmp_path: Path) -> None:
    tables = ("authorized_keys", "user_ssh_keys", "known_hosts", "ssh_configs")

    def scene() -> list[tuple[Rows, Rows]]:
        with_user("ed25519", "rsa")
        for name in ("authorized_keys", "known_hosts", "config"):
            shutil.copy(SSH / "id_rsa.pub", SSH / name)
            (SSH / name).chmod(0o600)
        give_to_user()
        statements = [f"SELECT * FROM {table} WHERE uid = {UID}" for table in tables]
        return [(select_in_worker(sql), select(sql)) for sql in statements]

    for in_worker, expected in on_scratch_host(scene, tmp_path):
        assert in_worker == expected
        assert expected


@needs_fuse
def test_a_home_directory_that_hangs_hides_no_others(tmp_path: Path) -> None:
    fuse = SilentFuse()

    def scene() -> tuple[Any, list[int]]:
        with_user("ed25519")
        Path("/home/slow").mkdir()
        fuse.mount("/home/slow", uid=7400)
        with Path("/etc/passwd").open("a") as passwd:
            passwd.write("slow:x:7400:7400::/home/slow:/bin/sh\nlast:x:7401:7401::/home/ada:/bin/sh\n")
        return select_with_errors("SELECT uid FROM user_ssh_keys WHERE uid >= 7000"), fuse.requests

    (rows, errors), requests = on_scratch_host(scene, tmp_path, fuse)
    assert [row["uid"] for row in rows] == [UID, 7401]
    assert "may hang" in errors[0]
    assert requests == []


def test_very_many_files_of_one_user_hide_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scene() -> Any:
        with_user("ed25519")
        for number in range(20):
            (SSH / f"a{number:03}").touch()
        Path("/root/.ssh").mkdir(exist_ok=True)
        shutil.copy(SSH / "id_ed25519", "/root/.ssh/key")
        with Path("/etc/passwd").open("a") as passwd:
            passwd.write("late:x:7300:7300::/root:/bin/sh\n")
        return select_with_errors("SELECT uid, path FROM user_ssh_keys WHERE uid >= 7000")

    monkeypatch.setattr(_user_files, "FILES_MAX", 20)
    rows, errors = on_scratch_host(scene, tmp_path)
    assert rows == [{"uid": 7300, "path": "/root/.ssh/key"}]
    assert "more than 20 files" in errors[0]


def test_long_lines_need_little_memory() -> None:
    for piece in (b'"', b"\\", b"a", b'\\"', b' "'):
        line = b"x" + piece * (1 << 19)
        tracemalloc.start()
        try:
            assert authorized_key(line) is None
            assert tracemalloc.get_traced_memory()[1] < 16 * len(line)
        finally:
            tracemalloc.stop()


@given(st.binary(max_size=300))
def test_no_bytes_make_the_readers_fail(content: bytes) -> None:
    pem = b"-----BEGIN %s-----\n%s\n-----END"
    for label in (b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"DSA PRIVATE KEY", b"OPENSSH PRIVATE KEY"):
        private_key(pem % (label, base64.encodebytes(content)))
    ssh = private_key(pem % (b"OPENSSH PRIVATE KEY", base64.encodebytes(b"openssh-key-v1\0" + content)))
    assert ssh is None or ssh.encrypted in {True, False}
    key = authorized_key(content)
    assert key is None or key.key


def test_a_user_whose_lines_take_long_to_mask_hides_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_user_files, "SECONDS_MAX", 0.02)

    def scene() -> list[tuple[Rows, Sequence[str]]]:
        with_user()
        output("useradd", "--uid", str(UID + 1), "--create-home", "bea")
        (SSH / "config").write_text(f"ProxyCommand curl -u a:b {'x ' * 500}\n" * 200)
        key = "ssh-ed25519 AAAA"
        (SSH / "authorized_keys").write_text(f'command="curl -u a:b {"x " * 500}" {key}\n' * 200)
        other = Path("/home/bea/.ssh")
        other.mkdir()
        (other / "config").write_text("User a\n")
        (other / "authorized_keys").write_text(f"{key}\n")
        give_to_user()
        output("chown", "-R", "bea:", str(other))
        counted = "SELECT uid, count(*) < 200 AS some FROM"
        return [
            select_with_errors(f"{counted} {table} WHERE uid IN ({UID}, {UID + 1}) GROUP BY uid ORDER BY uid")
            for table in ("ssh_configs", "authorized_keys")
        ]

    for rows, errors in on_scratch_host(scene, tmp_path):
        assert rows[-1] == {"uid": UID + 1, "some": 1}
        assert all(row["some"] for row in rows)
        assert "of processor time" in errors[0]
