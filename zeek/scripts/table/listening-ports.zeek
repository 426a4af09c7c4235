# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Listening ports, in ``zeek-agent-listening-ports.log``.

@load ../framework

module ZeekAgent_ListeningPorts;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 10sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## Process id of the listener.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## ``IPv4`` or ``IPv6``.
		family: string &log &optional;
		## Transport protocol number.
		protocol: count &log &optional;
		## Local address; all zero for all addresses of the host.
		address: addr &log &optional;
		## Port number.
		port_: count &log &optional;
		## User who created the socket.
		uid: count &log &optional;
		## Path of the process's executable.
		exe: string &log &optional;
		## Id of the container that the process is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
	};

	## The columns of ``zeek-agent-listening-ports.log``.
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

	## Decides what is logged to ``zeek-agent-listening-ports.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-listening-ports.log``.
	global log_listening_ports: event(rec: Info);
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

event ZeekAgent_ListeningPorts::query_result(ctx: ZeekAgent::Context,
    columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info,
	    $ev=log_listening_ports, $path="zeek-agent-listening-ports",
	    $policy=log_policy), Columns, table(["port_"] = "port"));

	if ( ! enabled )
		return;

	local sql = "SELECT pid, process, family, protocol, address, port AS port_, uid, exe, container_id, "
	    + "entity_id FROM listening_ports";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["listening_ports"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_ListeningPorts::query_interval",
	    "ZeekAgent_ListeningPorts::subscription");
	}
