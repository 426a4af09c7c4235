"""Questions of a worker to an agent, in a real cluster over each backend."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from running_agent import running
from waiting import until
from zeek_cluster import NODES, cluster
from zeek_program import needs_zeek, records

ASK_ABOUT_PROCESS = """
redef ZeekAgent::local_agents = { "*" };
module Ask;
export {
    redef enum Log::ID += { LOG };
    type Row: record { name: string &optional; };
    type Info: record { node: string &log; question: string &log; answer: string &log; };
}
type Rows: vector of Row;
global is_asked = F;
hook ZeekAgent::may_query(agent_id: string, q: ZeekAgent::Query)
    {
    if ( "forbidden" in q$sql_stmt )
        break;
    }
function log_answer(question: string, answer: ZeekAgent::Answer)
    {
    local text = answer?$error ? answer$error : "";
    if ( answer?$rows )
        for ( _, row in answer$rows as Rows )
            text += row$name;
    Log::write(LOG, Info($node=Cluster::node, $question=question, $answer=text));
    }
event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
    {
    if ( is_asked )
        return;
    is_asked = T;
    local id = process$hid;
    local sql = fmt("SELECT name FROM processes WHERE pid = %d", process$pid);
    # None of these may wait for its limit.
    when [id, sql] ( local some = ZeekAgent::ask(id, sql, Rows, 1hr) )
        { log_answer("process", some); }
    when [id] ( local none = ZeekAgent::ask(id, "SELECT name FROM processes WHERE pid = 0", Rows, 1hr) )
        { log_answer("none", none); }
    when [id] ( local wrong = ZeekAgent::ask(id, "SELECT name FROM nowhere", Rows, 1hr) )
        { log_answer("wrong", wrong); }
    when [id] ( local forbidden = ZeekAgent::ask(id, "SELECT 'forbidden' AS name", Rows, 1hr) )
        { log_answer("forbidden", forbidden); }
    when ( local unknown = ZeekAgent::ask("nobody", "SELECT name FROM users", Rows, 1hr) )
        { log_answer("unknown", unknown); }
    }
global ask_here: event(id: string);
event ask_here(id: string)
    {
    when [id] ( local here = ZeekAgent::ask(id, "SELECT 'here' AS name", Rows, 1hr) )
        { log_answer("everywhere", here); }
    }
event ask_everywhere(id: string)
    {
    event ask_here(id);
    for ( _, topic in vector(Cluster::worker_topic, Cluster::proxy_topic, Cluster::logger_topic) )
        Cluster::publish(topic, ask_here, id);
    }
event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
    {
    schedule 3sec { ask_everywhere(agent_id) };
    }
event zeek_init() { Log::create_stream(LOG, Log::Stream($columns=Info, $path="ask")); }
"""


def accepts(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


@needs_zeek
@pytest.mark.root
@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["zeromq", "broker"])
async def test_a_worker_asks_an_agent_about_a_connections_process(tmp_path: Path, backend: str) -> None:
    filters = {"worker-1": "host 127.7.7.11 and tcp", "worker-2": "host 127.7.7.11 and udp"}
    with cluster(tmp_path / "cluster", ASK_ABOUT_PROCESS, filters, backend) as nodes:
        await until(lambda: accepts(nodes.url), 30, "the manager does not listen")
        async with running(tmp_path, f"--zeek={nodes.url}") as agent:
            await until(lambda: any(records(nodes.log("zeek-agent"))), 30, "no agent joins")

            def answers() -> list[dict[str, str]]:
                with (
                    socket.create_server(("127.7.7.11", 0)) as server,
                    socket.create_connection(server.getsockname()) as client,
                ):
                    client.sendall(b"ping")
                return records(nodes.log("ask"))

            async def answered() -> bool:
                await asyncio.sleep(1)
                return len(answers()) >= 5 + len(NODES)

            await until(answered, 60, lambda: f"not all questions are answered: {records(nodes.log('ask'))}")
            (own,) = await agent.ask("SELECT name FROM processes WHERE pid = " + str(os.getpid()))
    everywhere = [line for line in records(nodes.log("ask")) if line["question"] == "everywhere"]
    assert {line["node"]: line["answer"] for line in everywhere} == dict.fromkeys(NODES, "here")
    lines = [line for line in records(nodes.log("ask")) if line["question"] != "everywhere"]
    found = {line["question"]: line["answer"] for line in lines}
    assert {line["node"] for line in lines} == {"worker-1"}
    assert found["process"] == own["name"]
    assert found["none"] == ""
    assert "no such table: nowhere" in found["wrong"]
    assert "does not allow" in found["forbidden"]
    assert found["unknown"] == "the agent is not connected"
    assert not [line for line in records(nodes.log("reporter")) if "nowhere" in line["message"]]
