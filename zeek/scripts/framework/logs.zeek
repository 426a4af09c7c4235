##! Shared code of the scripts that log the rows of tables.

@load ./types

module ZeekAgent;

export {
	## Maps the fields of a record that is nested in a log's record to names without a prefix.
	##
	## rec: the nested record's type.
	##
	## strip_prefix: what its fields' names begin with in the log, such as ``columns.``.
	global log_column_map: function(rec: any, strip_prefix: string): table[string] of
	    string;

	## Creates a log that shows the fields of the nested record ``columns`` without that prefix.
	##
	## id: the log.
	##
	## stream: the log as ``Log::create_stream`` takes it, with its path.
	##
	## columns: the type of its record's field ``columns``.
	##
	## names: what columns are called in the log that cannot be called so in a record.
	global create_stream: function(id: Log::ID, stream: Log::Stream, columns: any,
	    names: table[string] of string &default=table());

	## The same for a log that raises no event.
	##
	## id: the log.
	##
	## info: the type of its record.
	##
	## columns: the type of that record's field ``columns``.
	##
	## path: the log's name.
	##
	## policy: its policy hook.
	##
	## names: what columns are called in the log that cannot be called so in a record.
	global create_log: function(id: Log::ID, info: any, columns: any, path: string,
	    policy: Log::PolicyHook, names: table[string] of string
	    &default=table());
}

function log_column_map(rec: any, strip_prefix: string): table[string] of string
	{
	local names: table[string] of string = {};

	for ( field in record_fields(rec) )
		names[strip_prefix + field] = field;

	return names;
	}

function create_stream(id: Log::ID, stream: Log::Stream, columns: any,
    names: table[string] of string)
	{
	local field_names = log_column_map(columns, "columns.");

	for ( field, name in names )
		field_names["columns." + field] = name;

	Log::create_stream(id, stream);
	Log::remove_default_filter(id);
	Log::add_filter(id, Log::Filter($name="default", $path=stream$path,
	    $field_name_map=field_names));
	}

function create_log(id: Log::ID, info: any, columns: any, path: string,
    policy: Log::PolicyHook, names: table[string] of string)
	{
	create_stream(id, Log::Stream($columns=info, $path=path, $policy=policy),
	    columns, names);
	}
