# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Open sockets, in ``zeek-agent-sockets.log``.

@load ../framework

module ZeekAgent_Sockets;

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
		## Process that holds the socket.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## ``IPv4`` or ``IPv6``.
		family: string &log &optional;
		## Transport protocol number.
		protocol: count &log &optional;
		## Local address.
		local_addr: addr &log &optional;
		## Local port.
		local_port: count &log &optional;
		## Peer's address.
		remote_addr: addr &log &optional;
		## Peer's port.
		remote_port: count &log &optional;
		## State of the connection.
		state: string &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## Process that holds the socket.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## ``IPv4`` or ``IPv6``.
		family: string &log &optional;
		## Transport protocol number.
		protocol: count &log &optional;
		## Local address.
		local_addr: addr &log &optional;
		## Local port.
		local_port: count &log &optional;
		## Peer's address.
		remote_addr: addr &log &optional;
		## Peer's port.
		remote_port: count &log &optional;
		## State of the connection.
		state: string &log &optional;
		## User who created the socket.
		uid: count &log &optional;
		## Path of the process's executable.
		exe: string &log &optional;
		## Id of the container that the process is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
		## Community ID of the flow.
		community_id: string &log &optional;
	};

	## The columns of ``zeek-agent-sockets.log``.
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

	## Decides what is logged to ``zeek-agent-sockets.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-sockets.log``.
	global log_sockets: event(rec: Info);
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

event ZeekAgent_Sockets::query_result(ctx: ZeekAgent::Context, columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_sockets,
	    $path="zeek-agent-sockets", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT pid, process, family, protocol, local_addr, local_port, remote_addr, remote_port, "
	    + "state FROM sockets";
	local batch_sql = "SELECT pid, process, family, protocol, local_addr, local_port, remote_addr, remote_port, "
	    + "state, uid, exe, container_id, entity_id, community_id FROM sockets";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Sockets::query_interval",
	    "ZeekAgent_Sockets::subscription");
	}
