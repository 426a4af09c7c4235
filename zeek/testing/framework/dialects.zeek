# @TEST-DOC: A query with a dialect goes to agents that support dialects, with one field more; others get only those without.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: grep -c 'agent H2 (H2.local) does not support dialects' zeek.err >warnings
# @TEST-EXEC: btest-diff warnings

redef ZeekAgent::attribute_connections = F;

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	}

event zeek_init()
	{
	ZeekAgent::query([$sql_stmt="SELECT 1 FROM users", $event_=row, $schedule_=5sec]);
	ZeekAgent::query([$sql_stmt="SELECT 2 FROM users", $event_=row, $schedule_=5sec, $dialect="osquery"]);
	ZeekAgent::query([$sql_stmt="SELECT 3 FROM users", $event_=row, $schedule_=5sec, $dialect="osquery", $cookie="c"]);
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent("H1") as new, agent("H2") as old, agent("H3") as stock:
        await new.hello(features=("batches", "dialects"))
        await old.hello(hostname="H2.local")
        await stock.hello(features=None)
        for each in (new, old, stock):
            await each.settled()
            own = {query[0]: query for query in each.queries.values() if query[0][7].isdigit()}
            for sql in sorted(own):
                print(each.id, len(own[sql]), sql, own[sql][7:])
            print(each.id, "others", {len(query) for query in each.queries.values() if query[0] not in own})


asyncio.run(main())
# @TEST-END-FILE
