##! Adds the process at each endpoint of a connection to ``conn.log``.

@load base/protocols/conn
@load ./owners

module ZeekAgent;

export {
	## Fields to log about a process: any of ``hid``, ``pid``, ``process``, ``exe``, ``cmdline``, ``user``, ``container``
	## and ``entity_id``.
	option conn_fields: set[string] = {
		"hid",
		"pid",
		"process",
		"exe",
		"user",
		"container",
		"entity_id"
	};
}

redef record Conn::Info += {
	## Id of the agent on the originator's host.
	orig_hid: string &log &optional;
	## Process id of the originator.
	orig_pid: count &log &optional;
	## Name of the originator's process.
	orig_process: string &log &optional;
	## Path of its executable.
	orig_exe: string &log &optional;
	## Its command line.
	orig_cmdline: string &log &optional;
	## Name of its user.
	orig_user: string &log &optional;
	## Id of the container it is in.
	orig_container: string &log &optional;
	## Unique process id, never reused.
	orig_entity_id: string &log &optional;
	## Id of the agent on the responder's host.
	resp_hid: string &log &optional;
	## Process id of the responder.
	resp_pid: count &log &optional;
	## Name of the responder's process.
	resp_process: string &log &optional;
	## Path of its executable.
	resp_exe: string &log &optional;
	## Its command line.
	resp_cmdline: string &log &optional;
	## Name of its user.
	resp_user: string &log &optional;
	## Id of the container it is in.
	resp_container: string &log &optional;
	## Unique process id, never reused.
	resp_entity_id: string &log &optional;
};

function user_label(process: Process): string
	{
	return process?$user ? process$user : fmt("%d", process$uid);
	}

function log_orig(info: Conn::Info, process: Process)
	{
	if ( "hid" in conn_fields )
		info$orig_hid = process$hid;

	if ( "pid" in conn_fields && process?$pid )
		info$orig_pid = process$pid;

	if ( "process" in conn_fields && process?$process )
		info$orig_process = process$process;

	if ( "exe" in conn_fields && process?$exe )
		info$orig_exe = process$exe;

	if ( "cmdline" in conn_fields && process?$cmdline )
		info$orig_cmdline = process$cmdline;

	if ( "user" in conn_fields && process?$uid )
		info$orig_user = user_label(process);

	if ( "container" in conn_fields && process?$container )
		info$orig_container = process$container;

	if ( "entity_id" in conn_fields && process?$entity_id )
		info$orig_entity_id = process$entity_id;
	}

function log_resp(info: Conn::Info, process: Process)
	{
	if ( "hid" in conn_fields )
		info$resp_hid = process$hid;

	if ( "pid" in conn_fields && process?$pid )
		info$resp_pid = process$pid;

	if ( "process" in conn_fields && process?$process )
		info$resp_process = process$process;

	if ( "exe" in conn_fields && process?$exe )
		info$resp_exe = process$exe;

	if ( "cmdline" in conn_fields && process?$cmdline )
		info$resp_cmdline = process$cmdline;

	if ( "user" in conn_fields && process?$uid )
		info$resp_user = user_label(process);

	if ( "container" in conn_fields && process?$container )
		info$resp_container = process$container;

	if ( "entity_id" in conn_fields && process?$entity_id )
		info$resp_entity_id = process$entity_id;
	}

event connection_state_remove(c: connection)
	{
	if ( ! attribute_connections )
		return;

	attribute(c, T);
	attribute(c, F);

	# All that was told of these ends by now decides, not what was told first.
	local orig = process_of(c, T);
	local resp = process_of(c, F);

	if ( orig?$hid )
		log_orig(c$conn, orig);

	if ( resp?$hid )
		log_resp(c$conn, resp);

	note_end(c);
	}
