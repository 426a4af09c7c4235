# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Opened and closed connections, in ``zeek-agent-socket-events.log``.

@load ../framework

module ZeekAgent_SocketEvents;

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
		## Process that opened or accepted the connection.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## Its effective user id.
		uid: count &log &optional;
		## Its effective group id.
		gid: count &log &optional;
		## ``IPv4``, ``IPv6``, or ``packet`` for a packet socket that was opened, which has no ends and the
		## state ``listen``.
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
		## ``established``, ``active``, ``closed``, ``expired``, ``failed`` or ``listen``.
		state: string &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## When it happened, by the host's clock.
		time_: time &log &optional;
		## Process that opened or accepted the connection.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## Its effective user id.
		uid: count &log &optional;
		## Its effective group id.
		gid: count &log &optional;
		## ``IPv4``, ``IPv6``, or ``packet`` for a packet socket that was opened, which has no ends and the
		## state ``listen``.
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
		## ``established``, ``active``, ``closed``, ``expired``, ``failed`` or ``listen``.
		state: string &log &optional;
		## ``outbound`` or ``inbound``: who opened the connection.
		direction: string &log &optional;
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
		## Community ID of the flow.
		community_id: string &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
		## Time since the flow began; for ``closed``, ``expired`` and ``active``, as the counts.
		duration: interval &log &optional;
		## Bytes of payload that the host sent, without retransmissions.
		bytes_sent: count &log &optional;
		## Bytes of payload that the host received.
		bytes_received: count &log &optional;
		## Packets that the host sent.
		packets_sent: count &log &optional;
		## Packets that the host received.
		packets_received: count &log &optional;
		## Name for which the process had looked up the peer's address.
		remote_name: string &log &optional;
	};

	## The columns of ``zeek-agent-socket-events.log``.
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

	## Decides what is logged to ``zeek-agent-socket-events.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-socket-events.log``.
	global log_socket_events: event(rec: Info);
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

event ZeekAgent_SocketEvents::query_result(ctx: ZeekAgent::Context,
    columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_socket_events,
	    $path="zeek-agent-socket-events", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, pid, process, uid, gid, family, protocol, local_addr, local_port, "
	    + "remote_addr, remote_port, state FROM sockets_events";
	local batch_sql = "SELECT time AS time_, pid, process, uid, gid, family, protocol, local_addr, local_port, "
	    + "remote_addr, remote_port, state, direction, exe, cmdline, loginuid, container_id, "
	    + "entity_id, community_id, seq, duration, bytes_sent, bytes_received, packets_sent, "
	    + "packets_received, remote_name FROM sockets_events";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	add query$requires_tables["sockets_events"];
	add query$requires_tables["connections"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_SocketEvents::query_interval",
	    "ZeekAgent_SocketEvents::subscription");

	local sql_2 = "SELECT time AS time_, pid, process, uid, gid, family, protocol, local_addr, local_port, "
	    + "remote_addr, remote_port, state FROM sockets_events";
	local batch_sql_2 = "SELECT time AS time_, pid, process, uid, gid, family, protocol, local_addr, local_port, "
	    + "remote_addr, remote_port, state, direction, exe, cmdline, loginuid, container_id, "
	    + "entity_id, community_id, seq, NULL AS \"duration:interval\", NULL AS \"bytes_sent:count\", "
	    + "NULL AS \"bytes_received:count\", NULL AS \"packets_sent:count\", NULL AS "
	    + "\"packets_received:count\", NULL AS \"remote_name:text\" FROM sockets_events";
	local query_2 = ZeekAgent::Query($sql_stmt=sql_2, $batch_stmt=batch_sql_2,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	add query_2$requires_tables["sockets_events"];
	add query_2$if_missing_tables["connections"];
	ZeekAgent::follow_options(ZeekAgent::query(query_2),
	    "ZeekAgent_SocketEvents::query_interval",
	    "ZeekAgent_SocketEvents::subscription");
	}
