##! A log of one's own: processes that come and go, each with its memory.
##!
##! This works with any agent. ``Memory`` has a field for each column, in the order of the statement.

@load zeek-agent

module ProcessMemory;

export {
	redef enum Log::ID += { LOG };

	## A row of the statement.
	type Memory: record {
		name: string &log &optional;
		pid: count &log &optional;
		rsize: count &log &optional;
	};

	## What is logged.
	type Info: record {
		ts: time &log;
		host: string &log;
		change: string &log &optional;
		process: Memory &log;
	};
}

event ProcessMemory::row(ctx: ZeekAgent::Context, columns: Memory)
	{
	Log::write(LOG, Info($ts=network_time(), $host=ZeekAgent::hostname(ctx),
	    $change=ZeekAgent::change_type(ctx), $process=columns));
	}

event zeek_init()
	{
	Log::create_stream(LOG, Log::Stream($columns=Info, $path="process-memory"));
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT name, pid, rsize FROM processes WHERE rsize > 500000000",
	    $event_=ProcessMemory::row, $schedule_=10sec,
	    $subscription=ZeekAgent::Differences));
	}
