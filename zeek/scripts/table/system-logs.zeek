# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Entries of the system log, in ``zeek-agent-system-logs.log``.

@load ../framework

module ZeekAgent_SystemLogs;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::Events;

	redef enum Log::ID += { LOG };

	## The columns that any agent has.
	type Basic: record {
		## When the message was logged.
		time_: time &log &optional;
		## Process that logged it.
		process: string &log &optional;
		## Severity.
		level: string &log &optional;
		## The message.
		message: string &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## When the message was logged.
		time_: time &log &optional;
		## Process that logged it.
		process: string &log &optional;
		## Severity.
		level: string &log &optional;
		## The message.
		message: string &log &optional;
		## Process id of the sender.
		pid: count &log &optional;
		## User id of that process.
		uid: count &log &optional;
		## Path of its executable.
		exe: string &log &optional;
		## Its systemd unit.
		unit: string &log &optional;
		## Syslog identifier.
		identifier: string &log &optional;
		## Syslog facility.
		facility: count &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
	};

	## The columns of ``zeek-agent-system-logs.log``.
	type Info: record {
		## When Zeek received the row.
		t: time &log;
		## Id of the agent.
		hid: string &log;
		## Name of the host.
		host: string &log;
		## The row.
		columns: Columns &log;
		## Id of the agent's event store; with ``seq`` it identifies the event permanently.
		store: string &log &optional;
	};

	## Decides what is logged to ``zeek-agent-system-logs.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-system-logs.log``.
	global log_system_logs: event(rec: Info);
}

type Rows: vector of Columns;

function write_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
    rows: any)
	{
	local t = network_time();
	local host = ZeekAgent::hostname(ctx);

	for ( _, columns in rows as Rows )
		{
		local info = Info($t=t, $hid=ctx$agent_id, $host=host, $columns=columns,
		    $store=batch$store);

		Log::write(LOG, info);
		}
	}

function write_row(ctx: ZeekAgent::Context, columns: Columns)
	{
	if ( ZeekAgent::is_refused(ctx) )
		return;

	local info = Info($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	Log::write(LOG, info);
	}

event ZeekAgent_SystemLogs::query_result(ctx: ZeekAgent::Context, columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_system_logs,
	    $path="zeek-agent-system-logs", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, process, level, message FROM system_logs_events";
	local batch_sql = "SELECT time AS time_, process, level, message, pid, uid, exe, unit, identifier, facility, "
	    + "seq FROM system_logs_events";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	add query$requires_tables["system_logs_events"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_SystemLogs::query_interval",
	    "ZeekAgent_SystemLogs::subscription");
	}
