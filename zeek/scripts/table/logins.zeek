# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Logins, failed ones, changes of user, and their ends, in ``zeek-agent-logins.log``.

@load ../framework

module ZeekAgent_Logins;

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
		## ``login``, ``logout``, ``failed``, ``su``, ``sudo``, ``session_opened`` or ``session_closed``.
		action: string &log &optional;
		## User who logs in, or who runs su or sudo; of a failed login, whatever the client sent.
		user: string &log &optional;
		## That user's id, if it is a local account.
		uid: count &log &optional;
		## User to become by su or sudo.
		target_user: string &log &optional;
		## Terminal.
		tty: string &log &optional;
		## The client's address.
		remote_addr: addr &log &optional;
		## The client's port.
		remote_port: count &log &optional;
		## Process that reported the event.
		pid: count &log &optional;
		## Its name.
		process: string &log &optional;
		## The kernel's session id.
		session: count &log &optional;
		## Unique id of that process, never reused.
		entity_id: string &log &optional;
		## ``password``, ``publickey``, ….
		method: string &log &optional;
		## Command that sudo ran.
		command: string &log &optional;
		## ``success`` or ``failure``.
		outcome: string &log &optional;
		## Why it failed.
		reason: string &log &optional;
		## Sources on the host that reported it.
		source: string &log &optional;
		## Whether it was reported by more than text that any local user can write.
		verified: bool &log &optional;
		## Sequence number of the event in the agent's store.
		seq: count &log &optional;
	};

	## The columns of ``zeek-agent-logins.log``.
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

	## Decides what is logged to ``zeek-agent-logins.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-logins.log``.
	global log_logins: event(rec: Info);
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

event ZeekAgent_Logins::query_result(ctx: ZeekAgent::Context, columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_logins,
	    $path="zeek-agent-logins", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT time AS time_, action, user, uid, target_user, tty, remote_addr, remote_port, pid, "
	    + "process, session, entity_id, method, command, outcome, reason, source, verified, seq FROM "
	    + "logins_events";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["logins_events"];
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Logins::query_interval",
	    "ZeekAgent_Logins::subscription");
	}
