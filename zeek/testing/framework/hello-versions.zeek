# @TEST-DOC: Agents of any version are taken in: with twelve fields, with Broker's version among them, with features.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: zeek-cut -m type_ hid hostname addresses version uptime platform features < zeek-agent.log | grep -v ^offline > agents.log
# @TEST-EXEC: btest-diff agents.log
# @TEST-EXEC: btest-diff zeek.out

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	print "joined", agent_id, Test::sorted(ZeekAgent::supported_tables(agent_id));
	print Test::sorted(ZeekAgent::agents_by_address(10.0.0.1));
	}

event ZeekAgent::agent_left(agent_id: string, reason: string)
	{
	print "left", agent_id, reason, Test::sorted(ZeekAgent::connected_agents());
	print Test::sorted(ZeekAgent::agents_by_address(10.0.0.3));
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent("H-plain") as plain, agent("H-broker") as broker, agent("H-new") as new:
        await plain.hello(hostname="plain", addresses=("10.0.0.1",), features=None, tables=("users", "files"))
        await plain.expect("zeek_hello_v1")
        await broker.hello(hostname="broker", addresses=("fd00::2",), features=None, has_broker=True)
        await broker.expect("zeek_hello_v1")
        await new.hello(hostname="new", addresses=("10.0.0.1",))
        await new.expect("zeek_hello_v1")
        await new.hello(hostname="new", addresses=("10.0.0.3",))
        await new.hello("hello_2", hostname="new", addresses=("10.0.0.3",))
        await new.expect("zeek_hello_v1")
        await new.shutdown()
        await new.settled()


asyncio.run(main())
# @TEST-END-FILE
