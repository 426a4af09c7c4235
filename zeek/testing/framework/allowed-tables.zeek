# @TEST-DOC: Agents are not asked for tables, or with queries, that options and hooks rule out.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out

redef ZeekAgent::attribute_connections = F;
redef ZeekAgent::allowed_tables = { "users", "processes" };

hook ZeekAgent::may_query(agent_id: string, q: ZeekAgent::Query)
	{
	if ( agent_id == "H2" )
		break;
	}

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	}

event zeek_init()
	{
	ZeekAgent::query([$sql_stmt="SELECT 1 FROM processes JOIN Sockets USING (pid)", $event_=row]);
	ZeekAgent::query([$sql_stmt="SELECT 2 FROM processes, users", $event_=row]);
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent("H1") as first, agent("H2") as second:
        for each in (first, second):
            await each.hello()
            await each.settled()
            print(each.id, sorted(query[0][:40] for query in each.queries.values()))


asyncio.run(main())
# @TEST-END-FILE
