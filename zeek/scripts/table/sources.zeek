# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Event sources and their status, in ``zeek-agent-sources.log``.

@load ../framework

module ZeekAgent_Sources;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## Kind of events, such as ``processes``.
		source: string &log &optional;
		## Recording method, such as ``ebpf`` or ``audit``.
		backend: string &log &optional;
		## Whether this backend is active.
		active: bool &log &optional;
		## Why it is inactive.
		reason: string &log &optional;
		## Events lost because the kernel's buffer was full.
		lost_overrun: count &log &optional;
		## Events lost because they could not be decoded.
		lost_decode: count &log &optional;
		## Events lost because the event store could not accept them.
		lost_store: count &log &optional;
		## Events removed from the store before their time because it was full.
		evicted: count &log &optional;
		## The last error.
		last_error: string &log &optional;
	};

	## The columns of ``zeek-agent-sources.log``.
	type Info: record {
		## When Zeek received the row.
		t: time &log;
		## Id of the agent.
		hid: string &log;
		## Name of the host.
		host: string &log;
		## ``new`` or ``gone``; unset in a snapshot.
		change: string &log &optional;
		## The row.
		columns: Columns &log;
	};

	## Decides what is logged to ``zeek-agent-sources.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-sources.log``.
	global log_sources: event(rec: Info);
}

type Rows: vector of Columns;

function write_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
    rows: any)
	{
	local t = network_time();
	local host = ZeekAgent::hostname(ctx);
	local change = ZeekAgent::change_type(ctx);

	for ( _, columns in rows as Rows )
		{
		local info = Info($t=t, $hid=ctx$agent_id, $host=host, $columns=columns);

		if ( change != "" )
			info$change = change;

		Log::write(LOG, info);
		}
	}

function write_row(ctx: ZeekAgent::Context, columns: Columns)
	{
	if ( ZeekAgent::is_refused(ctx) )
		return;

	local info = Info($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG, info);
	}

event ZeekAgent_Sources::query_result(ctx: ZeekAgent::Context, columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_sources,
	    $path="zeek-agent-sources", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT source, backend, active, reason, lost_overrun, lost_decode, lost_store, evicted, "
	    + "last_error FROM zeek_agent_sources";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["zeek_agent_sources"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Sources::query_interval",
	    "ZeekAgent_Sources::subscription");
	}
