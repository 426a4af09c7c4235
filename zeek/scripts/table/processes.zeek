# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Running processes, in ``zeek-agent-processes.log``.

@load ../framework

module ZeekAgent_Processes;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::Differences;

	redef enum Log::ID += { LOG };

	## The columns that any agent has.
	type Basic: record {
		## Name of the process.
		name: string &log &optional;
		## Process id.
		pid: count &log &optional;
		## Effective user id.
		uid: count &log &optional;
		## Effective group id.
		gid: count &log &optional;
		## Process id of the parent.
		ppid: count &log &optional;
		## Scheduling priority.
		priority: string &log &optional;
		## When it started, as time since boot; if available.
		startup: interval &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## Name of the process.
		name: string &log &optional;
		## Process id.
		pid: count &log &optional;
		## Effective user id.
		uid: count &log &optional;
		## Effective group id.
		gid: count &log &optional;
		## Process id of the parent.
		ppid: count &log &optional;
		## Scheduling priority.
		priority: string &log &optional;
		## When it started, as time since boot; if available.
		startup: interval &log &optional;
		## Path of the executable.
		exe: string &log &optional;
		## Command line.
		cmdline: string &log &optional;
		## When it started.
		start_time: time &log &optional;
		## Login user id, which setuid does not change.
		loginuid: count &log &optional;
		## Id of the container it is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
		## The parent's ``entity_id``.
		parent_entity_id: string &log &optional;
	};

	## The columns of ``zeek-agent-processes.log``.
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

	## Decides what is logged to ``zeek-agent-processes.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-processes.log``.
	global log_processes: event(rec: Info);
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

event ZeekAgent_Processes::query_result(ctx: ZeekAgent::Context, columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_processes,
	    $path="zeek-agent-processes", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql =
	    "SELECT name, pid, uid, gid, ppid, priority, startup FROM processes";
	local batch_sql = "SELECT name, pid, uid, gid, ppid, priority, startup, exe, cmdline, start_time, loginuid, "
	    + "container_id, entity_id, parent_entity_id FROM processes";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Processes::query_interval",
	    "ZeekAgent_Processes::subscription");
	}
