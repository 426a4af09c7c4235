# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! User accounts, in ``zeek-agent-users.log``.

@load ../framework

module ZeekAgent_Users;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += { LOG };

	## The columns that any agent has.
	type Basic: record {
		## Login name.
		name: string &log &optional;
		## Full name.
		full_name: string &log &optional;
		## Whether it has administrator rights.
		is_admin: bool &log &optional;
		## Whether it is a system account.
		is_system: bool &log &optional;
		## User id.
		uid: string &log &optional;
		## Id of the primary group.
		gid: count &log &optional;
		## Home directory.
		home: string &log &optional;
		## Login shell.
		shell: string &log &optional;
		## Email address.
		email: string &log &optional;
	};

	## A row; columns after the basic ones come only from agents that support batches.
	type Columns: record {
		## Login name.
		name: string &log &optional;
		## Full name.
		full_name: string &log &optional;
		## Whether it has administrator rights.
		is_admin: bool &log &optional;
		## Whether it is a system account.
		is_system: bool &log &optional;
		## User id.
		uid: string &log &optional;
		## Id of the primary group.
		gid: count &log &optional;
		## Home directory.
		home: string &log &optional;
		## Login shell.
		shell: string &log &optional;
		## Email address.
		email: string &log &optional;
		## Groups it belongs to.
		groups: set[string] &log &optional;
	};

	## The columns of ``zeek-agent-users.log``.
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

	## Decides what is logged to ``zeek-agent-users.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-users.log``.
	global log_users: event(rec: Info);
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

event ZeekAgent_Users::query_result(ctx: ZeekAgent::Context, columns: any)
	{
	if ( columns is Columns )
		write_row(ctx, columns as Columns);
	else
		write_row(ctx, columns as Basic);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_users,
	    $path="zeek-agent-users", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT name, full_name, is_admin, is_system, uid, gid, home, shell, email FROM users";
	local batch_sql = "SELECT name, full_name, is_admin, is_system, uid, gid, home, shell, email, groups FROM users";
	local query = ZeekAgent::Query($sql_stmt=sql, $batch_stmt=batch_sql,
	    $event_=query_result, $row_type=Rows, $on_rows=write_rows,
	    $schedule_=query_interval, $subscription=subscription);
	ZeekAgent::follow_options(ZeekAgent::query(query),
	    "ZeekAgent_Users::query_interval", "ZeekAgent_Users::subscription");
	}
