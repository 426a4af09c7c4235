# @TEST-DOC: Agents are not asked for tables, or with queries, that options and hooks rule out; nor agents whose tables are not known.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: btest-diff zeek.out

redef ZeekAgent::attribute_connections = F;
redef ZeekAgent::allowed_tables = { "users", "processes" };

# What is returned belongs to the caller.
event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1) &priority=10
	{
	local tables = ZeekAgent::supported_tables(agent_id);
	clear_table(tables);
	print agent_id, |ZeekAgent::supported_tables(agent_id)|;
	}

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

	# A record that is used for several queries.
	local q = ZeekAgent::Query($sql_stmt="SELECT 3 FROM users", $event_=row);
	ZeekAgent::query(q);
	q$sql_stmt = "SELECT 4 FROM users";
	ZeekAgent::query(q);
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import SOCKET_TABLES, agent


async def main() -> None:
    async with agent("H1") as first, agent("H2") as second, agent("H3") as silent:
        for each in (first, second, silent):
            await each.hello(tables=None if each is silent else SOCKET_TABLES)
            await each.settled()
            print(each.id, sorted(query[0][:40] for query in each.queries.values()))


asyncio.run(main())
# @TEST-END-FILE
