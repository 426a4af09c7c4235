"""The Zeek package under ZeekControl, and the real agent with it: deployed, restarted, its port shared or its own."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running_agent import AGENT_ID, RunningAgent, running
from waiting import until
from zeek_control import CLUSTER, STANDALONE, ZeekControl, deployed
from zeek_program import needs_zeek, records

HOST = "127.7.7.12"
SITE = f"""
redef ZeekAgent::local_agents = {{ "{AGENT_ID}" }};
redef ZeekAgent_Files::enabled = F;
redef ignore_checksums = T;
redef udp_inactivity_timeout = 3secs;
redef restrict_filters += {{ ["host"] = "host {HOST}" }};
@if ( Cluster::node == "worker-1" )
redef restrict_filters += {{ ["share"] = "tcp" }};
@endif
@if ( Cluster::node == "worker-2" )
redef restrict_filters += {{ ["share"] = "udp" }};
@endif
"""


def connect() -> set[tuple[str, int, int]]:
    """Make a TCP connection and a UDP exchange; their protocols and ports."""
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"ping")
            peer.recv(64)
        tcp = ("tcp", client.getsockname()[1], server.getsockname()[1])
    with (
        socket.socket(type=socket.SOCK_DGRAM) as receiver,
        socket.socket(type=socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((HOST, 0))
        sender.connect(receiver.getsockname())
        sender.send(b"ping")
        _, origin = receiver.recvfrom(64)
        receiver.sendto(b"pong", origin)
        sender.recv(64)
        udp = ("udp", sender.getsockname()[1], receiver.getsockname()[1])
    return {tcp, udp}


def lines_of(control: ZeekControl, wanted: set[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """The lines of conn.log on connections, once all have one."""
    lines = [
        line
        for line in records(control.log("conn"))
        if (str(line["proto"]), line["id.orig_p"], line["id.resp_p"]) in wanted
    ]
    return lines if len(lines) >= len(wanted) else []


async def works(control: ZeekControl, agent: RunningAgent) -> None:
    """The agent joins, is asked each thing once, and who is behind a connection is logged, once."""
    log = control.log("zeek-agent")
    await until(lambda: any(one["type_"] == "join" for one in records(log)), 30, f"no join: {control.diagnosis()}")
    running_queries = "SELECT sql, event FROM zeek_agent_queries WHERE recipient LIKE 'ws%' AND runs > 0"
    await until(
        lambda: agent.ask(f"SELECT 1 FROM ({running_queries}) GROUP BY 1 HAVING count(*) >= 12"),
        complaint="queries do not run",
    )
    asked = Counter((one["sql"], one["event"]) for one in await agent.ask(running_queries))
    assert set(asked.values()) == {1}

    made = connect()
    lines = await until(lambda: lines_of(control, made), 30, "connections are not logged")
    assert len(lines) == len(made)
    for line in lines:
        assert (line["orig_pid"], line["resp_pid"]) == (os.getpid(), os.getpid())
        assert line["orig_hid"] == line["resp_hid"] == AGENT_ID

    for node in set(control.nodes) - {control.writer}:
        assert control.logs(node) == {"stderr", "stdout"}
    complaints = [one for one in records(control.log("reporter")) if "INFO" not in str(one["level"])]
    assert not complaints
    assert not re.search("error|warning", control.diagnosis(), re.IGNORECASE)


@pytest.mark.long
@needs_zeek
@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("nodes", "backend", "shared"),
    [
        pytest.param(STANDALONE, "Broker", 0, id="standalone"),
        pytest.param(STANDALONE, "Broker", 1, id="standalone-shared-port"),
        pytest.param(CLUSTER, "Broker", 0, id="broker-cluster"),
        pytest.param(CLUSTER, "ZeroMQ", 1, id="zeromq-cluster-shared-port"),
    ],
)
async def test_agents_work_with_a_deployment_and_return_after_its_restart(
    tmp_path: Path, nodes: dict[str, str], backend: str, shared: int
) -> None:
    """`UseWebSocket`, which is on by default from 8.1, has ZeekControl open the port that the package opens, too."""
    with deployed(tmp_path / "zeek", nodes, SITE, ClusterBackend=backend, UseWebSocket=shared) as control:
        async with running(tmp_path, f"--zeek={control.url}") as agent:
            await works(control, agent)
            control.run("restart")
            await works(control, agent)
            assert control.archived("zeek-agent")
