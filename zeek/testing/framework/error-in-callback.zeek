# @TEST-DOC: An error in a script that takes rows does not keep the agent waiting.
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

redef ZeekAgent::attribute_connections = F;

type Row: record {
	n: count &optional;
};

type Rows: vector of Row;

function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	local found = rows as Rows;
	print found[0]$n;
	print found[5]$n;
	}

event zeek_init()
	{
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT numbers", $row_type=Rows, $on_rows=take, $schedule_=1sec));
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent() as one:
        await one.hello()
        query_id = await one.query("SELECT numbers")
        await one.batch(query_id, [{"n": 1}], window=(0, 1))
        print("acknowledged", (await one.expect("rows_ack_v1"))[2:])


asyncio.run(main())
# @TEST-END-FILE
