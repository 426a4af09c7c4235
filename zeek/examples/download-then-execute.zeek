##! A notice when a program is executed on a host whose content was seen on the wire before.
##!
##! Files are known by their SHA-256. When an agent tells of a program that was started, its host is asked for the file's
##! hash by the table ``file_hashes``, for each host and program once in a while.

@load base/frameworks/files
@load base/frameworks/notice
@load zeek-agent

module DownloadThenExecute;

export {
	redef enum Notice::Type += {
		## A file that was transferred has been executed.
		Executed_Download,
	};

	## How long files that were transferred are remembered.
	option memory: interval = 1day;

	## How long a program that was looked at is not looked at again on its host.
	option pause: interval = 10sec;

	## Programs that are not looked at.
	option trusted: pattern = /^\/(usr|bin|sbin|lib)/;

	## A file was seen on the wire.
	global transferred: event(sha256: string, description: string);
}

type Start: record {
	exe: string &optional;
	cmdline: string &optional;
	uid: count &optional;
};

type Starts: vector of Start;

type Hash: record {
	sha256: string &optional;
};

type Hashes: vector of Hash;

global downloads: table[string] of string &create_expire=memory;
global asked: set[string, string] &create_expire=pause;

event file_new(f: fa_file)
	{
	Files::add_analyzer(f, Files::ANALYZER_SHA256);
	}

event file_hash(f: fa_file, kind: string, hash: string)
	{
	if ( kind != "sha256" )
		return;

	local description = fmt("%s from %s", f?$info && f$info?$filename ?
	    f$info$filename : f$id, f$source);

	# The manager hears of what is executed.
	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::manager_topic, transferred, hash, description);
	else
		event transferred(hash, description);
	}

event transferred(sha256: string, description: string)
	{
	downloads[sha256] = description;
	}

function compare(agent_id: string, exe: string)
	{
	local sql = fmt("SELECT sha256 FROM file_hashes(%s)", ZeekAgent::sql_text(
	    exe));

	when [agent_id, exe, sql] ( local answer = ZeekAgent::ask(agent_id, sql,
	    Hashes) )
		{
		if ( answer?$rows )
			for ( _, row in answer$rows as Hashes )
				if ( row?$sha256 && row$sha256 in downloads )
					NOTICE(Notice::Info($note=Executed_Download, $msg=fmt(
					    "%s was executed on %s: %s", exe,
					    ZeekAgent::hostname_of(agent_id),
					    downloads[row$sha256]),
					    $sub=row$sha256,
					    $identifier=agent_id + row$sha256));
		}
	}

function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	for ( _, row in rows as Starts )
		{
		if ( ! row?$exe || trusted in row$exe || [ctx$agent_id, row$exe] in asked )
			next;

		add asked[ctx$agent_id, row$exe];
		compare(ctx$agent_id, row$exe);
		}
	}

event zeek_init()
	{
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT exe, cmdline, uid FROM processes_events WHERE state = 'started'",
	    $row_type=Starts, $on_rows=take, $schedule_=1sec,
	    $subscription=ZeekAgent::Events, $requires_tables=set(
	    "processes_events")));
	}
