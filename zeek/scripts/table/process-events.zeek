# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Process starts and stops, in ``zeek-agent-process-events.log``.

@load ../framework

module ZeekAgent_ProcessEvents;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 0.5sec;

	## How results are reported.
	option subscription = ZeekAgent::Events;

	redef enum Log::ID += { LOG };

	## The columns that any agent has.
	type Basic: record {
		## When it happened, by the host's clock.
		time_: time &log &optional;
		## Name of the process.
		name: string &log &optional;
		## Process id.
		pid: count &log &optional;
		## Process id of the parent.
		ppid: count &log &optional;
		## Effective user id.
		uid: count &log &optional;
		## Effective group id.
		gid: count &log &optional;
		## Real user id.
		ruid: count &log &optional;
		## Real group id.
		rgid: count &log &optional;
		## Run time of a stopped process.
		duration: interval &log &optional;
		## ``started`` or ``stopped``.
		state: string &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## When it happened, by the host's clock.
		time_: time &log &optional;
		## Name of the process.
		name: string &log &optional;
		## Process id.
		pid: count &log &optional;
		## Process id of the parent.
		ppid: count &log &optional;
		## Effective user id.
		uid: count &log &optional;
		## Effective group id.
		gid: count &log &optional;
		## Real user id.
		ruid: count &log &optional;
		## Real group id.
		rgid: count &log &optional;
		## Run time of a stopped process.
		duration: interval &log &optional;
		## ``started`` or ``stopped``.
		state: string &log &optional;
		## Path of the executable.
		exe: string &log &optional;
		## Command line.
		cmdline: string &log &optional;
		## Working directory.
		cwd: string &log &optional;
		## Exit status; negative signal number if killed by a signal.
		exit_code: int &log &optional;
		## Login user id, which setuid does not change.
		loginuid: count &log &optional;
		## Id of the container it is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
		## The parent's ``entity_id``.
		parent_entity_id: string &log &optional;
		## The parent's name.
		parent_name: string &log &optional;
		## Path of the parent's executable.
		parent_exe: string &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
	};

	## The columns of ``zeek-agent-process-events.log``.
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

	## Decides what is logged to ``zeek-agent-process-events.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-process-events.log``.
	global log_process_events: event(rec: Info);
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

event ZeekAgent_ProcessEvents::query_result(ctx: ZeekAgent::Context,
    columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info,
	    $ev=log_process_events, $path="zeek-agent-process-events",
	    $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, name, pid, ppid, uid, gid, ruid, rgid, duration, state FROM processes_events";
	local batch_sql = "SELECT time AS time_, name, pid, ppid, uid, gid, ruid, rgid, duration, state, exe, "
	    + "cmdline, cwd, exit_code, loginuid, container_id, entity_id, parent_entity_id, "
	    + "parent_name, parent_exe, seq FROM processes_events";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	add query$requires_tables["processes_events"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_ProcessEvents::query_interval",
	    "ZeekAgent_ProcessEvents::subscription");
	}
