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

	## A row; the columns after the basic ones come only from agents that support batches.
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
}

type Rows: vector of Columns;

function log_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
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

function log_row(ctx: ZeekAgent::Context, columns: Columns)
	{
	local info = Info($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG, info);
	}

event ZeekAgent_Processes::query_result(ctx: ZeekAgent::Context, columns: any)
	{
	if ( columns is Columns )
		log_row(ctx, columns as Columns);
	else
		log_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_log(LOG, Info, Columns, "zeek-agent-processes", log_policy);

	if ( ! enabled )
		return;

	local sql =
	    "SELECT name, pid, uid, gid, ppid, priority, startup FROM processes";
	local batch_sql = "SELECT name, pid, uid, gid, ppid, priority, startup, exe, cmdline, start_time, "
	    + "loginuid, container_id, entity_id, parent_entity_id FROM processes";

	ZeekAgent::query(ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=log_rows,
	    $schedule_=query_interval, $subscription=subscription));
	}
