# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Names that processes looked up, in ``zeek-agent-dns.log``.

@load ../framework

module ZeekAgent_Dns;

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
		## When it was asked, by the host's clock.
		time_: time &log &optional;
		## Process that asked.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## Its effective user id.
		uid: count &log &optional;
		## Name that was asked for, in lower case.
		query: string &log &optional;
		## Type of the question, such as ``A``.
		qtype: string &log &optional;
		## Response code, such as ``NXDOMAIN``; unset without an answer.
		rcode: string &log &optional;
		## Data of the answer's records.
		answers: vector of string &log &optional;
		## Time from the question to the answer.
		latency: interval &log &optional;
		## Transport protocol number.
		protocol: count &log &optional;
		## Local address.
		local_addr: addr &log &optional;
		## Local port.
		local_port: count &log &optional;
		## The server's address.
		server_addr: addr &log &optional;
		## The server's port.
		server_port: count &log &optional;
		## Name of the process, if it is a service that asks for others.
		via: string &log &optional;
		## Path of the process's executable.
		exe: string &log &optional;
		## Id of the container that the process is in.
		container_id: string &log &optional;
		## Unique process id, never reused.
		entity_id: string &log &optional;
		## Community ID of the flow.
		community_id: string &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
	};

	## The columns of ``zeek-agent-dns.log``.
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

	## Decides what is logged to ``zeek-agent-dns.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-dns.log``.
	global log_dns: event(rec: Info);
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

event ZeekAgent_Dns::query_result(ctx: ZeekAgent::Context, columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_dns,
	    $path="zeek-agent-dns", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, pid, process, uid, query, type AS qtype, rcode, answers, latency, "
	    + "protocol, local_addr, local_port, server_addr, server_port, via, exe, container_id, "
	    + "entity_id, community_id, seq FROM dns_events";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["dns_events"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Dns::query_interval", "ZeekAgent_Dns::subscription");
	}
