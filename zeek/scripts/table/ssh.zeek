##! Settings of SSH servers, in ``zeek-agent-ssh-configs.log``, and authorized keys, in
##! ``zeek-agent-ssh-authorized-keys.log``.

@load ../framework

module ZeekAgent_SSH;

export {
	## Whether to query agents.
	const enabled = T &redef;

	## Patterns of the servers' configuration files. A change while Zeek runs takes effect at once.
	option config_paths_to_watch = set("/etc/ssh/sshd_config",
	    "/etc/ssh/sshd_config.d/*");

	## Patterns of the files with keys, by platform. A change while Zeek runs takes effect at once.
	option key_paths_to_watch: table[string] of set[string] = {
		["linux"] = set("/home/*/.ssh/authorized_keys",
		    "/home/*/.ssh/authorized_keys2",
		    "/root/.ssh/authorized_keys", "/root/.ssh/authorized_keys2",
		    "/var/lib/*/.ssh/authorized_keys"),
		["darwin"] = set("/Users/*/.ssh/authorized_keys",
		    "/var/root/.ssh/authorized_keys"),
	};

	## Interval between runs of the query.
	option query_interval = 30sec;

	## How results are reported.
	option subscription = ZeekAgent::SnapshotPlusDifferences;

	redef enum Log::ID += {
		LOG_CONFIGS,
		LOG_KEYS
	};

	## A setting.
	type ConfigOption: record {
		## Its name.
		key: string &log &optional;
		## Its value, the first word.
		value: string &log &optional;
	};

	## A setting and its location.
	type ColumnsConfigs: record {
		## Path of the file.
		path: string &log &optional;
		## Number of the line.
		number: count &log &optional;
		## The setting.
		option_: ConfigOption &log &optional;
	};

	## A key and its location.
	type ColumnsKeys: record {
		## Path of the file.
		path: string &log &optional;
		## Number of the line.
		number: count &log &optional;
		## The line.
		content: string &log &optional;
	};

	## The columns of ``zeek-agent-ssh-configs.log``.
	type InfoConfigs: record {
		## When Zeek received the row.
		t: time &log;
		## Id of the agent.
		hid: string &log;
		## Name of the host.
		host: string &log;
		## ``new`` or ``gone``; unset in a snapshot.
		change: string &log &optional;
		## The row.
		columns: ColumnsConfigs &log;
	};

	## The columns of ``zeek-agent-ssh-authorized-keys.log``.
	type InfoKeys: record {
		## When Zeek received the row.
		t: time &log;
		## Id of the agent.
		hid: string &log;
		## Name of the host.
		host: string &log;
		## ``new`` or ``gone``; unset in a snapshot.
		change: string &log &optional;
		## The row.
		columns: ColumnsKeys &log;
	};

	## Decides what is logged to ``zeek-agent-ssh-configs.log``.
	global log_policy_configs: Log::PolicyHook;

	## Decides what is logged to ``zeek-agent-ssh-authorized-keys.log``.
	global log_policy_keys: Log::PolicyHook;

	## Raised for each line of ``zeek-agent-ssh-configs.log``.
	global log_ssh_configs: event(rec: InfoConfigs);

	## Raised for each line of ``zeek-agent-ssh-authorized-keys.log``.
	global log_ssh_authorized_keys: event(rec: InfoKeys);
}

# A setting as batches carry it.
type ConfigRow: record {
	path: string &optional;
	number: count &optional;
	key: string &optional;
	value: string &optional;
};

type ConfigRows: vector of ConfigRow;
type KeyRows: vector of ColumnsKeys;

function log_config(ctx: ZeekAgent::Context, columns: ColumnsConfigs)
	{
	local info = InfoConfigs($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG_CONFIGS, info);
	}

function log_key(ctx: ZeekAgent::Context, columns: ColumnsKeys)
	{
	local info = InfoKeys($t=network_time(), $hid=ctx$agent_id,
	    $host=ZeekAgent::hostname(ctx), $columns=columns);

	if ( ctx?$change )
		info$change = ZeekAgent::change_type(ctx);

	Log::write(LOG_KEYS, info);
	}

function log_config_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
    rows: any)
	{
	for ( _, row in rows as ConfigRows )
		{
		local setting = ConfigOption();

		if ( row?$key )
			setting$key = row$key;

		if ( row?$value )
			setting$value = row$value;

		local columns = ColumnsConfigs($option_=setting);

		if ( row?$path )
			columns$path = row$path;

		if ( row?$number )
			columns$number = row$number;

		log_config(ctx, columns);
		}
	}

function log_key_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch,
    rows: any)
	{
	for ( _, columns in rows as KeyRows )
		log_key(ctx, columns);
	}

event ZeekAgent_SSH::query_result_configs(ctx: ZeekAgent::Context,
    columns: ColumnsConfigs)
	{
	if ( ! ZeekAgent::is_refused(ctx) )
		log_config(ctx, columns);
	}

event ZeekAgent_SSH::query_result_keys(ctx: ZeekAgent::Context,
    columns: ColumnsKeys)
	{
	if ( ! ZeekAgent::is_refused(ctx) )
		log_key(ctx, columns);
	}

# The queries for each kind of file.
global config_queries: vector of string;
global key_queries: vector of string;

# Has a query follow its options. Returns the id that it is cancelled by.
function followed(query_id: string): string
	{
	ZeekAgent::follow_options(query_id, "ZeekAgent_SSH::query_interval",
	    "ZeekAgent_SSH::subscription");
	return query_id;
	}

function ask_configs(path: string)
	{
	local from_files = fmt("FROM files_columns(%s, '$1:text,$2:text')",
	    ZeekAgent::sql_text(path));
	local sql = "SELECT path, number, columns " + from_files;
	local batch_sql = "SELECT path, number, columns ->> 'c1' AS \"key:text\", columns ->> 'c2' AS \"value:text\" "
	    + from_files;

	config_queries += followed(ZeekAgent::query(ZeekAgent::Query($sql_stmt=sql,
	    $batch_stmt=batch_sql, $event_=query_result_configs,
	    $row_type=ConfigRows, $on_rows=log_config_rows,
	    $schedule_=query_interval, $subscription=subscription)));
	}

function ask_keys(path: string, platform: string)
	{
	local sql = fmt("SELECT path, number, content FROM files_lines(%s)",
	    ZeekAgent::sql_text(path));

	key_queries += followed(ZeekAgent::query(ZeekAgent::Query($sql_stmt=sql,
	    $event_=query_result_keys, $row_type=KeyRows, $on_rows=log_key_rows,
	    $schedule_=query_interval, $subscription=subscription),
	    ZeekAgent::Group, platform));
	}

function ask_all_configs()
	{
	for ( path in config_paths_to_watch )
		ask_configs(path);
	}

function ask_all_keys()
	{
	for ( platform, paths in key_paths_to_watch )
		for ( key_path in paths )
			ask_keys(key_path, platform);
	}

# Cancels queries, which at nodes other than the manager exist in name only.
function cancel_all(query_ids: vector of string)
	{
	if ( ! ZeekAgent::is_owner() )
		return;

	for ( _, query_id in query_ids )
		ZeekAgent::cancel(query_id);
	}

# Raised after the options have changed.

event config_paths_changed()
	{
	cancel_all(config_queries);
	config_queries = vector();
	ask_all_configs();
	}

event key_paths_changed()
	{
	cancel_all(key_queries);
	key_queries = vector();
	ask_all_keys();
	}

function on_config_paths(id: string, paths: set[string]): set[string]
	{
	event config_paths_changed();
	return paths;
	}

function on_key_paths(id: string, paths: table[string] of set[string]): table[
    string] of set[string]
	{
	event key_paths_changed();
	return paths;
	}

event zeek_init()
	{
	ZeekAgent::create_stream(LOG_CONFIGS, Log::Stream($columns=InfoConfigs,
	    $ev=log_ssh_configs, $path="zeek-agent-ssh-configs",
	    $policy=log_policy_configs), ColumnsConfigs);
	ZeekAgent::create_stream(LOG_KEYS, Log::Stream($columns=InfoKeys,
	    $ev=log_ssh_authorized_keys, $path="zeek-agent-ssh-authorized-keys",
	    $policy=log_policy_keys), ColumnsKeys);

	if ( ! enabled )
		return;

	ask_all_configs();
	ask_all_keys();
	Option::set_change_handler("ZeekAgent_SSH::config_paths_to_watch",
	    on_config_paths);
	Option::set_change_handler("ZeekAgent_SSH::key_paths_to_watch", on_key_paths);
	}
