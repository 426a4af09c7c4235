# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Created, written, deleted, renamed and executed files, in ``zeek-agent-file-events.log``.

@load ../framework

module ZeekAgent_FileEvents;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 0.5sec;

	## How results are reported.
	option subscription = ZeekAgent::Events;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## When it happened, by the host's clock.
		time_: time &log &optional;
		## ``created``, ``written``, ``deleted``, ``renamed``, ``attributes`` or ``executed``.
		action: string &log &optional;
		## Full path of the file.
		file_: string &log &optional;
		## Of a renamed file: its path before.
		old_file: string &log &optional;
		## ``file``, ``dir``, ``link`` or another type of file.
		kind: string &log &optional;
		## How often the process did it within a second.
		times: count &log &optional;
		## Process that did it.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## Its effective user id.
		uid: count &log &optional;
		## Size of the file in bytes.
		size: count &log &optional;
		## Permissions of the file, in octal.
		permissions: string &log &optional;
		## SHA-256 of a new or changed executable.
		sha256: string &log &optional;
		## Whether the change was found later, without its process.
		found: bool &log &optional;
		## Path of the process's executable.
		exe: string &log &optional;
		## Its command line.
		cmdline: string &log &optional;
		## Login user id, which setuid does not change.
		loginuid: count &log &optional;
		## Id of the container that the process is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
	};

	## The columns of ``zeek-agent-file-events.log``.
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

	## Decides what is logged to ``zeek-agent-file-events.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-file-events.log``.
	global log_file_events: event(rec: Info);
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

event ZeekAgent_FileEvents::query_result(ctx: ZeekAgent::Context,
    columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_file_events,
	    $path="zeek-agent-file-events", $policy=log_policy), Columns,
	    table(["file_"] = "file"));

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, action, path AS file, old_path AS old_file, type AS kind, count AS "
	    + "times, pid, process, uid, size, permissions, sha256, found, exe, cmdline, loginuid, "
	    + "container_id, entity_id, seq FROM files_events";
	local batch_sql = "WITH r(c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, c18, "
	    + "c19) AS (SELECT time AS time_, action, path AS file, old_path AS old_file, type AS kind, "
	    + "count AS times, pid, process, uid, size, permissions, sha256, found, exe, cmdline, "
	    + "loginuid, container_id, entity_id, seq FROM files_events) SELECT c1 AS \"time_:time\", c2 "
	    + "AS \"action:text\", c3 AS \"file_:text\", c4 AS \"old_file:text\", c5 AS \"kind:text\", c6 AS "
	    + "\"times:count\", c7 AS \"pid:count\", c8 AS \"process:text\", c9 AS \"uid:count\", c10 AS "
	    + "\"size:count\", c11 AS \"permissions:text\", c12 AS \"sha256:text\", c13 AS \"found:bool\", c14 "
	    + "AS \"exe:text\", c15 AS \"cmdline:text\", c16 AS \"loginuid:count\", c17 AS "
	    + "\"container_id:text\", c18 AS \"entity_id:text\", c19 AS \"seq:count\" FROM r";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	add query$requires_tables["files_events"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_FileEvents::query_interval",
	    "ZeekAgent_FileEvents::subscription");
	}
