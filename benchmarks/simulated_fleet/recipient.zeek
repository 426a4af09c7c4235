# A Zeek as the recipient of a simulated fleet: one query, whose rows are logged.

module Fleet;

export {
	redef enum Log::ID += { LOG };

	type Row: record {
		store: string;
		number: count;
		check_sum: count;
	};

	type Rows: vector of Row;

	type Info: record {
		ts: time &log;
		hid: string &log;
		store: string &log;
		number: count &log;
		check_sum: count &log;
		host_time: time &log;
	};

	const sql = "" &redef;
	const pause = 1sec &redef;
}

# Agents without batches are not part of a fleet.
event unused(ctx: ZeekAgent::Context, row: Row)
	{ }

function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	for ( _, row in rows as Rows )
		Log::write(LOG, Info($ts=current_time(), $hid=ctx$agent_id, $store=row$store,
		    $number=row$number, $check_sum=row$check_sum,
		    $host_time=ctx$host_time));
	}

event zeek_init()
	{
	Log::create_stream(LOG, Log::Stream($columns=Info, $path="fleet"));
	ZeekAgent::query(ZeekAgent::Query($sql_stmt=sql, $event_=unused,
	    $row_type=Rows, $on_rows=take, $schedule_=pause,
	    $subscription=ZeekAgent::Events));
	}
