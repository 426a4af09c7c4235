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

	## A filter that names fields as the log shows them, for ``Log::add_filter``. Zeek itself knows a field that is shown
	## as ``cmdline`` only as ``columns.cmdline``, and ignores other names:
	##
	## .. code:: zeek
	##
	##    Log::add_filter(ZeekAgent_Processes::LOG, ZeekAgent::log_filter(ZeekAgent_Processes::LOG,
	##        Log::Filter($name="default", $exclude=set("cmdline"))));
	##
	## id: the log, which must have been created.
	##
	## filter: the filter; ``include``, ``exclude`` and ``field_name_map`` can contain either names, or the name of
	##         a record for all its fields. Zeek does not start if the log has no such field.
	##
	## Returns: the filter as Zeek takes it, which shows fields by the names that they have in the log.
	global log_filter: function(id: Log::ID, filter: Log::Filter): Log::Filter;
}

# What Zeek calls the fields of each log, by the names that the log shows.
global fields_by_shown_name: table[Log::ID] of table[string] of string;

function log_column_map(rec: any, strip_prefix: string): table[string] of string
	{
	local names: table[string] of string = {};

	for ( field in record_fields(rec) )
		names[strip_prefix + field] = field;

	return names;
	}

# Adds the fields that a record logs, those of nested records one by one, by the names that the log shows.
function add_shown_names(fields: table[string] of string, rec: any,
    prefix: string, field_names: table[string] of string)
	{
	for ( field, description in record_fields(rec) )
		{
		if ( ! description$log )
			next;

		local name = prefix + field;

		if ( starts_with(description$type_name, "record ") )
			add_shown_names(fields, sub(description$type_name, /^record /, ""), name +
			    ".", field_names);
		else
			fields[name in field_names ? field_names[name] : name] = name;
		}
	}

function create_stream(id: Log::ID, stream: Log::Stream, columns: any,
    names: table[string] of string)
	{
	local field_names = log_column_map(columns, "columns.");

	for ( field, name in names )
		field_names["columns." + field] = name;

	local fields: table[string] of string;
	add_shown_names(fields, stream$columns, "", field_names);
	fields_by_shown_name[id] = fields;

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

# The fields that Zeek knows by names that may be shown ones.
function known_fields(id: Log::ID, names: set[string]): set[string]
	{
	local shown = fields_by_shown_name[id];
	local known: set[string] = set();

	for ( name in names )
		{
		if ( name in shown )
			{
			add known[shown[name]];
			next;
			}

		local is_known = F;

		# Zeek's own name, or that of a record, whose fields it knows one by one.
		for ( _, field in shown )
			if ( field == name || starts_with(field, name + ".") )
				{
				is_known = T;
				add known[field];
				}

		if ( ! is_known )
			Reporter::error(fmt("Zeek Agent: log_filter: %s has no field %s", id, name));
		}

	return known;
	}

function log_filter(id: Log::ID, filter: Log::Filter): Log::Filter
	{
	if ( id !in fields_by_shown_name )
		{
		Reporter::error(fmt("Zeek Agent: log_filter: %s is not a log of this package that has been created",
		    id));
		return filter;
		}

	local ours = copy(filter);

	if ( filter?$include )
		ours$include = known_fields(id, filter$include);

	if ( filter?$exclude )
		ours$exclude = known_fields(id, filter$exclude);

	ours$field_name_map = table();

	for ( name, field in fields_by_shown_name[id] )
		if ( name != field )
			ours$field_name_map[field] = name;

	for ( given, new_name in filter$field_name_map )
		for ( known in known_fields(id, set(given)) )
			ours$field_name_map[known] = new_name;

	return ours;
	}

# The same names, with Zeek's own in place of those that only the log shows. Zeek ignores a name that is neither.
function translated(id: Log::ID, filter: string, names: set[string]): set[
    string]
	{
	local shown = fields_by_shown_name[id];
	local zeek_names: set[string] = set();
	local all: set[string] = set();

	for ( _, zeek_name in shown )
		add zeek_names[zeek_name];

	for ( name in names )
		{
		add all[name in shown ? shown[name] : name];

		if ( name !in shown && name !in zeek_names )
			Reporter::warning(fmt("Zeek Agent: filter %s of %s: the log has no field %s",
			    filter, id, name));
		}

	return all;
	}

# Makes filters that scripts have added with the names that the log shows work, too.
event zeek_init() &priority=-1000
	{
	for ( id in fields_by_shown_name )
		for ( name in Log::get_filter_names(id) )
			{
			local filter = copy(Log::get_filter(id, name));
			local is_changed = F;

			if ( filter?$include )
				{
				local included = translated(id, name, filter$include);
				is_changed = included != filter$include;
				filter$include = included;
				}

			if ( filter?$exclude )
				{
				local excluded = translated(id, name, filter$exclude);
				is_changed = is_changed || excluded != filter$exclude;
				filter$exclude = excluded;
				}

			if ( is_changed )
				Log::add_filter(id, filter);
			}
	}
