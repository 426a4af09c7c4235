# @TEST-DOC: Each batch is handled once, in order, and acknowledged each time it comes.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: grep -q 'do not match' zeek.err

redef ZeekAgent::attribute_connections = F;

type Row: record {
	n: count &optional;
	at: time &optional;
	set_: set[string] &optional;
};

type Rows: vector of Row;

function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	for ( _, row in rows as Rows )
		print batch$store, batch$high, batch$index, ZeekAgent::change_type(ctx), row$n, row?$at ? cat(row$at) : "";
	}

event per_row(ctx: ZeekAgent::Context, row: Row)
	{
	print "per row", row$n;
	}

event zeek_init()
	{
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT numbers", $batch_stmt="SELECT batched", $event_=per_row,
	                                  $row_type=Rows, $on_rows=take, $schedule_=1sec,
	                                  $subscription=ZeekAgent::Events));
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import NONE, Agent, agent, count


async def send(one: Agent, query_id: str, n: int, window: tuple[int, int], index: int = 0, last: bool = True, **more: str) -> None:
    rows = [{"n": n, "at": 1795489125.198097, "unknown": 1}] if n else [{"n": "not a number"}]
    await one.batch(query_id, rows, window=window, index=index, last=last, change="Add", **more)
    print("acknowledged", (await one.expect("rows_ack_v1"))[2:])


async def main() -> None:
    async with agent() as one, agent("H-plain") as plain:
        await one.hello()
        query_id = await one.query("SELECT batched")
        await send(one, query_id, 1, (0, 10), last=False)
        await send(one, query_id, 1, (0, 10), last=False)  # again, while its result is under way
        await send(one, query_id, 2, (0, 10), index=1)
        await send(one, query_id, 2, (0, 10), index=1)  # again, after its result was complete
        await send(one, query_id, 3, (10, 20))
        await send(one, query_id, 1, (0, 10))
        await send(one, query_id, 4, (20, 30), last=False)
        await send(one, query_id, 5, (20, 40))  # the rest is another result now
        await send(one, query_id, 6, (0, 10), store="S2")
        await send(one, query_id, 7, (30, 40), stream="Q2")
        await one.batch(query_id, [{"n": 8}], window=(60, 70), index=1)  # the one before it was lost
        await send(one, query_id, 0, (40, 50))
        await send(one, query_id, 9, (60, 70), last=False)
        await send(one, query_id, 10, (60, 70), index=1)
        await one.batch("za_unknown", [{"n": 99}])
        print("cancelled", (await one.expect("cancel_query_v1"))[1])

        await plain.hello(features=None)
        query_id = await plain.query("SELECT numbers")
        await plain.row(query_id, "per_row", count(11), NONE, NONE, change="Add")
        await plain.settled()


asyncio.run(main())
# @TEST-END-FILE
