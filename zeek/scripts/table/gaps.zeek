# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Periods with missing events, in ``zeek-agent-gaps.log``.

@load ../framework

module ZeekAgent_Gaps;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::Differences;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## Kind of events that are missing, such as ``processes``; ``agent`` if the agent did not run.
		source: string &log &optional;
		## Start of the gap, by the host's clock.
		from: time &log &optional;
		## End of the gap.
		until: time &log &optional;
		## Cause of the gap.
		cause: string &log &optional;
	};

	## The columns of ``zeek-agent-gaps.log``.
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

	## Decides what is logged to ``zeek-agent-gaps.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-gaps.log``.
	global log_gaps: event(rec: Info);
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

event ZeekAgent_Gaps::query_result(ctx: ZeekAgent::Context, columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_gaps,
	    $path="zeek-agent-gaps", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT source, \"from\", until, cause FROM zeek_agent_gaps";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["zeek_agent_gaps"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Gaps::query_interval", "ZeekAgent_Gaps::subscription");
	}
