"""Accounts that a daemon of the name service has: a real one for libnss_systemd, which a helper process asks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from zeek_agent.host.accounts import name_service

ADA = {
    "userName": "ada",
    "uid": 74_100,
    "gid": 74_100,
    "realName": "Ada Lovelace",
    "homeDirectory": "/home/ada",
    "shell": "/bin/zsh",
    "disposition": "regular",
}
IN_NAMESPACE = 'mkdir -p /run/systemd && mount --bind "$1" /run/systemd && shift && exec "$@"'
CONFIGURED = re.search(r"^passwd:.*\bsystemd\b", Path("/etc/nsswitch.conf").read_text(), re.MULTILINE)
needs_nss_systemd = pytest.mark.skipif(
    CONFIGURED is None or not list(Path("/usr/lib").glob("*/libnss_systemd.so.2")),
    reason="libnss_systemd is not installed and in nsswitch.conf",
)


class UserDatabase:
    """A service of systemd's user database, with one user. `peers` are the uids of the processes that asked."""

    def __init__(self, run: Path) -> None:
        self.peers: list[int] = []
        place = run / "userdb" / "io.zeektest"
        place.parent.mkdir()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(place))
        place.chmod(0o666)
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                self.peers.append(int.from_bytes(credentials[4:8], sys.byteorder))
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        received = b""
        while content := client.recv(65_536):
            received += content
            while b"\0" in received:
                request, _, received = received.partition(b"\0")
                client.send(json.dumps(self._reply(json.loads(request))).encode() + b"\0")

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("parameters", {})
        is_ada = wanted.get("userName", "ada") == "ada" and wanted.get("uid", ADA["uid"]) == ADA["uid"]
        if request["method"] == "io.systemd.UserDatabase.GetUserRecord" and is_ada:
            return {"parameters": {"record": {**ADA, "service": "io.zeektest"}, "incomplete": False}}
        return {"error": "io.systemd.UserDatabase.NoRecordFound", "parameters": {}}


@pytest.fixture
def daemon() -> Iterator[tuple[Path, UserDatabase]]:
    with tempfile.TemporaryDirectory(prefix="zeek-agent-run-") as name:
        run = Path(name)
        run.chmod(0o755)
        opened = UserDatabase(run)
        yield run, opened
        opened.close()


def users(run: Path, state: Path, condition: str, **environment: str) -> list[tuple[Any, ...]]:
    """What the program shows of an account where the daemon is."""
    return selected(run, state, f"SELECT name, full_name, groups FROM users WHERE {condition}", **environment)


def selected(run: Path, state: Path, sql: str, **environment: str) -> list[tuple[Any, ...]]:
    """The rows that the program shows where the daemon is."""
    program = [sys.executable, "-m", "zeek_agent", "query", "--state-dir", str(state), "--format", "json", sql]
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_NAMESPACE, "-", str(run)]
    result = subprocess.run(
        [*namespace, *program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [tuple(row.values()) for row in json.loads(result.stdout)]


@pytest.mark.root
@needs_nss_systemd
@pytest.mark.parametrize("condition", ["name = 'ada'", "uid = '74100'"], ids=["by name", "enumerated"])
def test_an_account_of_a_daemon_is_listed(condition: str, daemon: tuple[Path, UserDatabase], tmp_path: Path) -> None:
    run, database = daemon
    assert users(run, tmp_path, condition) == [("ada", "Ada Lovelace", ["74100"])]
    assert any(database.peers), "only root's processes asked"


@pytest.mark.root
@needs_nss_systemd
def test_without_permission_only_local_accounts_are_listed(daemon: tuple[Path, UserDatabase], tmp_path: Path) -> None:
    run, database = daemon
    local_only = {"ZEEK_AGENT_ACCESS__USER_DATABASE": "false"}
    assert users(run, tmp_path, "name = 'ada'", **local_only) == []
    assert [name for name, _, _ in users(run, tmp_path, "uid = '0'", **local_only)] == ["root"]
    assert not any(database.peers)


@pytest.mark.root
@needs_nss_systemd
def test_tables_of_osquery_ask_a_daemon_when_they_would_in_osquery(
    daemon: tuple[Path, UserDatabase], tmp_path: Path
) -> None:
    run, database = daemon
    both = "SELECT username FROM osquery_users WHERE username IN ('ada', 'root')"
    assert selected(run, tmp_path, both) == [("root",)]
    assert not any(database.peers)
    for condition in ("uid = 74100", "username = 'ada'"):
        sql = f"SELECT description, gid, directory, shell FROM osquery_users WHERE include_remote = 1 AND {condition}"
        assert selected(run, tmp_path, sql) == [("Ada Lovelace", 74_100, "/home/ada", "/bin/zsh")]
    assert selected(run, tmp_path, "SELECT gid FROM user_groups WHERE uid = 74100") == [(74_100,)]
    assert any(database.peers), "only root's processes asked"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("passwd: files\ngroup: files\n", False),
        ("passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\nhosts: files dns\nshadow: files sss\n", False),
        ("passwd: files sss\ngroup: files\n", True),
        ("passwd: files\ngroup: db files ldap # comment\n", True),
        ("passwd: files\n# group: ldap\ninitgroups: files [NOTFOUND=return] winbind\n", True),
        ("", False),
    ],
)
def test_daemons_are_those_that_nsswitch_names(lines: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "nsswitch.conf").write_text(lines)
    assert name_service.has_daemons(tmp_path / "nsswitch.conf", tmp_path / "userdb") is expected
    (tmp_path / "userdb").mkdir()
    (tmp_path / "userdb" / "io.systemd.DynamicUser").touch()
    asks_systemd = expected or "systemd" in lines
    assert name_service.has_daemons(tmp_path / "nsswitch.conf", tmp_path / "userdb") is asks_systemd


def test_without_nsswitch_there_are_only_files(tmp_path: Path) -> None:
    assert not name_service.has_daemons(tmp_path / "nsswitch.conf", tmp_path)
