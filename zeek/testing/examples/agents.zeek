# @TEST-DOC: The examples that take rows: a log, a notice of a new listening port, a file that is downloaded and executed.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ln -s ${PACKAGE} zeek-agent
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py ${EXAMPLES}/process-log.zeek ${EXAMPLES}/listening-port-notice.zeek ${EXAMPLES}/download-then-execute.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host change process.name process.pid process.rsize < process-memory.log > memory
# @TEST-EXEC: btest-diff memory
# @TEST-EXEC: zeek-cut -m note msg src < notice.log > notices
# @TEST-EXEC: btest-diff notices
# @TEST-EXEC: ! grep -i error zeek.err

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	event DownloadThenExecute::transferred("abc", "installer.bin from HTTP");
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import SOCKET_TABLES, agent, count, string


async def main() -> None:
    async with agent("H1") as one:
        await one.hello(hostname="alpha", tables=(*SOCKET_TABLES, "listening_ports", "processes_events", "file_hashes"))
        memory = await one.query("rsize > 500000000")
        await one.row(memory, "ProcessMemory::row", string("big"), count(7), count(600000000), change="Add")

        ports = await one.query("SELECT process, exe, protocol, address, port AS port_")
        listener = {"process": "nc", "exe": "/bin/nc", "protocol": 6, "address": "10.0.0.1"}
        await one.batch(ports, [{**listener, "port_": 4443}])
        await one.batch(ports, [{**listener, "port_": 4444}, {**listener, "port_": 22}], change="Add")

        starts = await one.query("WHERE state = 'started'")
        programs = [{"exe": "/tmp/it's", "cmdline": "x", "uid": 0}, {"exe": "/usr/bin/ls"}, {"exe": "/tmp/other"}]
        await one.batch(starts, programs, change="Add", window=(0, 3))
        for program, digest in (("it''s", "abc"), ("other", "def")):
            question = await one.query(f"SELECT sha256 FROM file_hashes('/tmp/{program}')")
            await one.batch(question, [{"sha256": digest}])
        await one.settled()


asyncio.run(main())
# @TEST-END-FILE
