# @TEST-DOC: A query for one agent goes to that agent alone; a cancelled query ends there and never comes back.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: ! grep -i error zeek.err

redef ZeekAgent::attribute_connections = F;

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	if ( agent_id == "H2" )
		ZeekAgent::cancel("za_unknown");
	}

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	}

global id: string;

event ended(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	ZeekAgent::cancel(id);
	}

event zeek_init()
	{
	ZeekAgent::query([$sql_stmt="SELECT for one", $event_=row], ZeekAgent::Host, "H2");
	id = ZeekAgent::query([$sql_stmt="SELECT for one, cancelled", $event_=ended, $schedule_=1sec], ZeekAgent::Host,
	                      "H2");
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent("H1") as first, agent("H2") as second:
        for each in (first, second):
            await each.hello()
            await each.settled()
            print(each.id, sorted(query[0] for query in each.queries.values() if "for one" in query[0]))
        cancelled = await second.query("cancelled")
        await second.row(cancelled, "ended", *[{"@data-type": "none", "data": {}}] * 11)
        print("cancelled the right one:", (await second.expect("cancel_query_v1"))[1] == cancelled)
        second.queries.clear()
        await second.hello("hello_2")
        await second.settled()
        print(second.id, sorted(query[0] for query in second.queries.values() if "for one" in query[0]))


asyncio.run(main())
# @TEST-END-FILE
