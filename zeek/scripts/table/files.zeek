##! Files that match patterns, in ``zeek-agent-files.log``.

@load ../framework

module ZeekAgent_Files;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Patterns of the paths to list, as in a shell; ``**`` is any number of directories. By default: what starts programs
	## (cron in /etc and its spool, units of systemd), other configuration, and directories of SSH keys.
	const paths_to_watch = set("/etc/*", "/etc/*/*", "/etc/systemd/*/**/*",
	    "/usr/lib/systemd/*/**/*", "/usr/local/lib/systemd/*/**/*",
	    "/run/systemd/system/**/*", "/root/.config/systemd/user/**/*",
	    "/home/*/.config/systemd/user/**/*", "/var/spool/cron/**/*",
	    "/root/.ssh/*", "/home/*/.ssh/*") &redef;

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += { LOG };

	## A row.
	type Columns: record {
		## The path.
		path: string &log &optional;
		## File type, such as ``file``, ``dir``, ``socket``.
		type_: string &log &optional;
		## Id of the owning user.
		uid: count &log &optional;
		## Id of the owning group.
		gid: count &log &optional;
		## Permissions, in octal.
		mode: string &log &optional;
		## When the contents were last changed.
		mtime: time &log &optional;
		## Size in bytes.
		size: count &log &optional;
	};

	## The columns of ``zeek-agent-files.log``.
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

	## Decides what is logged to ``zeek-agent-files.log``.
	global log_policy: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-files.log``.
	global log_files: event(rec: Info);
}

type Rows: vector of Columns;

function log_row(ctx: ZeekAgent::Context, columns: Columns)
	{
	local info = Info($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG, info);
	}

function log_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
    rows: any)
	{
	for ( _, columns in rows as Rows )
		log_row(ctx, columns);
	}

event ZeekAgent_Files::query_result(ctx: ZeekAgent::Context, columns: Columns)
	{
	if ( ! ZeekAgent::is_refused(ctx) )
		log_row(ctx, columns);
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG, Log::Stream($columns=Info, $ev=log_files,
	    $path="zeek-agent-files", $policy=log_policy), Columns);

	if ( ! enabled )
		return;

	for ( path in paths_to_watch )
		{
		local sql = fmt("SELECT path, type AS type_, uid, gid, mode, mtime, size FROM files_list(%s)",
		    ZeekAgent::sql_text(path));

		ZeekAgent::follow_options(ZeekAgent::query(ZeekAgent::Query($sql_stmt=sql,
		    $event_=query_result, $row_type=Rows, $on_rows=log_rows,
		    $schedule_=query_interval, $subscription=subscription)),
		    "ZeekAgent_Files::query_interval",
		    "ZeekAgent_Files::subscription");
		}
	}
