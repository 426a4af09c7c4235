# @TEST-DOC: A script written for the package of Zeek Agent v2 runs unchanged.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: zeek-cut -m hid host change name uid home < inventory.log > rows.log
# @TEST-EXEC: btest-diff rows.log
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: btest-diff agents.out

module Inventory;

export {
	redef enum Log::ID += { LOG };

	type Columns: record {
		name: string &optional &log;
		uid: count &optional &log;
		home: string &optional &log;
	};

	type Info: record {
		t: time &log;
		hid: string &log;
		host: string &log;
		change: string &optional &log;
		columns: Columns &log;
	};
}

global id: string;

event Inventory::result(ctx: ZeekAgent::Context, columns: Columns)
	{
	local info: Info = [$t=network_time(), $hid=ctx$agent_id, $host=ZeekAgent::hostname(ctx), $columns=columns];

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG, info);
	print ZeekAgent::host_id(ctx), ZeekAgent::change_type(ctx) == "", ctx?$cookie ? ctx$cookie : "no cookie",
	    "users" in ZeekAgent::supported_tables(ctx$agent_id);

	if ( ctx?$change && ctx$change == ZeekAgent::Delete )
		ZeekAgent::cancel(id);
	}

event zeek_init()
	{
	Log::create_stream(LOG, [$columns=Info]);
	Log::remove_default_filter(LOG);
	Log::add_filter(LOG, [$name="default", $path="inventory",
	                      $field_name_map=ZeekAgent::log_column_map(Columns, "columns.")]);
	id = ZeekAgent::query([$sql_stmt="SELECT name, uid, home FROM users", $event_=Inventory::result,
	                       $schedule_=30secs, $subscription=ZeekAgent::Differences, $cookie="c",
	                       $requires_tables=set("users")]);
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent, count, string


async def main() -> None:
    async with agent() as one:
        await one.hello(hostname="alpha", features=None)
        query_id = await one.query("SELECT name, uid, home FROM users")
        print(one.queries[query_id])
        for change in ("Add", "Delete"):
            await one.row(query_id, "Inventory::result", string("ann"), count(7), string("/home/ann"), change=change)
        await one.row(query_id, "Inventory::result", string("bob"), count(8), string("/home/bob"))
        print("cancelled:", (await one.expect("cancel_query_v1"))[1] == query_id)


asyncio.run(main())
# @TEST-END-FILE
