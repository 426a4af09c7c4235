"""Logins at a real sshd, su and sudo, recorded by the real agent: each event once, whichever sources there are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_agent import RunningAgent, started
from ssh_host import PASSWORD, UID, USER, SshHost, ssh_host
from waiting import until_sync

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to start sshd in namespaces"
)

QUERY = "SELECT * FROM logins_events WHERE user IN ('zalice', 'nobodyhere') OR target_user = 'zalice' ORDER BY time"


def answers(agent: RunningAgent) -> bool:
    try:
        return bool(agent.query("SELECT id FROM zeek_agent"))
    except Exception:  # noqa: BLE001
        return False


def rows(agent: RunningAgent, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in agent.query(QUERY) if wanted.items() <= row.items()]


def summary(agent: RunningAgent) -> list[tuple[str, str, str | None, str | None]]:
    return [(row["action"], row["outcome"], row["user"], row["target_user"]) for row in agent.query(QUERY)]


@pytest.fixture(params=["journal", "syslog"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SshHost]:
    with ssh_host(tmp_path / "host", request.param) as found:
        found.start_sshd()
        yield found
