# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

##! Files that run with the rights of their owner or group (setuid, setgid), in
##! ``zeek-agent-setuid-files.log``.

@load ../framework

module ZeekAgent_SetuidFiles;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Interval between runs of the query.
	option query_interval = 600sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	## Interval between runs of the query.
	option query_interval_2 = 60sec;

	## How results are reported.
	option subscription_2 = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## The path.
		path: string &log &optional;
		## Id of the owning user.
		uid: count &log &optional;
		## Id of the owning group.
		gid: count &log &optional;
		## Permissions, in octal: 4 as the first of four digits is setuid, 2 setgid, 6 both.
		mode: string &log &optional;
		## When the contents were last changed.
		mtime: time &log &optional;
		## Size in bytes.
		size: count &log &optional;
	};

	## The columns of ``zeek-agent-setuid-files.log``.
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

	## Decides what is logged to ``zeek-agent-setuid-files.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-setuid-files.log``.
	global log_setuid_files: event(rec: Info);
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

event ZeekAgent_SetuidFiles::query_result(ctx: ZeekAgent::Context,
    columns: Columns)
	{
	write_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_setuid_files,
	    $path="zeek-agent-setuid-files", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	local sql = "SELECT path, uid, gid, mode, mtime, size FROM ( SELECT * FROM files_list('/usr/bin/*') "
	    + "UNION ALL SELECT * FROM files_list('/usr/sbin/*') UNION ALL SELECT * FROM "
	    + "files_list('/usr/local/bin/*') UNION ALL SELECT * FROM files_list('/usr/local/sbin/*') "
	    + "UNION ALL SELECT * FROM files_list('/usr/lib/*') UNION ALL SELECT * FROM "
	    + "files_list('/usr/lib/*/*') UNION ALL SELECT * FROM files_list('/usr/lib/*/*/*') UNION ALL "
	    + "SELECT * FROM files_list('/usr/libexec/*') UNION ALL SELECT * FROM "
	    + "files_list('/usr/libexec/*/*') UNION ALL SELECT * FROM files_list('/opt/*/*') UNION ALL "
	    + "SELECT * FROM files_list('/opt/*/*/*') ) WHERE type = 'file' AND mode GLOB "
	    + "'[2-7][0-7][0-7][0-7]'";
	local query = ZeekAgent::Query($sql_stmt=sql, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query$requires_tables["zeek_agent_tables"];
	ZeekAgent::follow_options(ZeekAgent::query(query, ZeekAgent::Group, "linux"),
	    "ZeekAgent_SetuidFiles::query_interval",
	    "ZeekAgent_SetuidFiles::subscription");

	local sql_2 = "SELECT path, uid, gid, mode, mtime, size FROM ( SELECT * FROM files_list('/root/*') UNION "
	    + "ALL SELECT * FROM files_list('/root/.*') UNION ALL SELECT * FROM files_list('/home/*/*') "
	    + "UNION ALL SELECT * FROM files_list('/home/*/.*') ) WHERE type = 'file' AND mode GLOB "
	    + "'[2-7][0-7][0-7][0-7]'";
	local query_2 = ZeekAgent::Query($sql_stmt=sql_2, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval,
	    $subscription=subscription);
	add query_2$requires_tables["zeek_agent_tables"];
	ZeekAgent::follow_options(ZeekAgent::query(query_2, ZeekAgent::Group, "linux"),
	    "ZeekAgent_SetuidFiles::query_interval",
	    "ZeekAgent_SetuidFiles::subscription");

	local sql_3 = "SELECT path, uid, gid, mode, mtime, size FROM ( SELECT * FROM files_list('/tmp/*') UNION "
	    + "ALL SELECT * FROM files_list('/tmp/.*') UNION ALL SELECT * FROM files_list('/var/tmp/*') "
	    + "UNION ALL SELECT * FROM files_list('/var/tmp/.*') UNION ALL SELECT * FROM "
	    + "files_list('/dev/shm/*') UNION ALL SELECT * FROM files_list('/dev/shm/.*') ) WHERE type = "
	    + "'file' AND mode GLOB '[2-7][0-7][0-7][0-7]'";
	local query_3 = ZeekAgent::Query($sql_stmt=sql_3, $event_=query_result,
	    $row_type=Rows, $on_rows=write_rows, $schedule_=query_interval_2,
	    $subscription=subscription_2);
	add query_3$requires_tables["zeek_agent_tables"];
	ZeekAgent::follow_options(ZeekAgent::query(query_3, ZeekAgent::Group, "linux"),
	    "ZeekAgent_SetuidFiles::query_interval_2",
	    "ZeekAgent_SetuidFiles::subscription_2");
	}
