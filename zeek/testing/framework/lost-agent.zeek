# @TEST-DOC: An agent whose last connection ends is offline at once; one that reconnects or shuts down is not, nor one by whose name another subscribed.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: zeek-cut type_ hid < zeek-agent.log | sort > agents
# @TEST-EXEC: btest-diff agents

redef ZeekAgent::attribute_connections = F;

type User: record {
	name: string &optional;
};

type Users: vector of User;

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	print "connected", ctx$cookie, Test::sorted(ZeekAgent::connected_agents());
	}

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	if ( agent_id == "H-killed" )
		when ( local answer = ZeekAgent::ask("H-killed", "SELECT name FROM users", Users, 1hr) )
			{
			print "answer", answer$error;
			}
	}

event ZeekAgent::agent_left(agent_id: string, reason: string)
	{
	print "left", agent_id, reason;
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import NONE, Agent, agent, vector


async def say(of: Agent, cookie: str) -> None:
    await of.publish("row", of.context(None, cookie=cookie), vector(*[NONE] * 10))
    await of.settled()


async def main() -> None:
    async with agent("H-watch") as watch, agent("H-victim") as victim:
        await watch.hello()
        await watch.settled()
        await victim.hello()

        async with agent("H-killed") as killed:
            await killed.hello()
            await killed.query("SELECT name FROM users")
            killed._websocket.transport.abort()
        await asyncio.sleep(2.5)
        await say(watch, "killed")

        async with agent("H-stopped") as stopped:
            await stopped.hello()
            await stopped.settled()
            await stopped.shutdown()
        await asyncio.sleep(2.5)
        await say(watch, "stopped")

        async with agent("H-victim"):
            pass  # not the agent: somebody who subscribes to its queries
        await asyncio.sleep(2.5)
        await say(watch, "imposed")

        async with agent("H-again") as first:
            await first.hello("hello_1")
            await first.settled()
            async with agent("H-again") as second:
                await first._websocket.close()
                await second.hello("hello_2")
                await asyncio.sleep(2.5)
                await say(watch, "again")


asyncio.run(main())
# @TEST-END-FILE
