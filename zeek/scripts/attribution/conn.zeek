##! Adds the process at each endpoint of a connection to ``conn.log``.

@load base/protocols/conn
@load ./owners

module ZeekAgent;

export {
	## Fields to log about an endpoint: any of ``hid``, ``pid``, ``process``, ``exe``, ``cmdline``, ``user``,
	## ``container`` and ``entity_id`` of its process, and the bytes that its host counted, ``host_sent`` and
	## ``host_received``.
	option conn_fields: set[string] = {
		"hid",
		"pid",
		"process",
		"exe",
		"user",
		"container",
		"entity_id",
		"host_sent",
		"host_received"
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
	## Bytes of payload that the originator's host counted as sent, without retransmissions.
	orig_host_sent: count &log &optional;
	## Bytes of payload that it counted as received.
	orig_host_received: count &log &optional;
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
	## Bytes of payload that the responder's host counted as sent, without retransmissions.
	resp_host_sent: count &log &optional;
	## Bytes of payload that it counted as received.
	resp_host_received: count &log &optional;
	## User who logged in over the connection, as with SSH.
	login_user: string &log &optional;
	## Process on the responder's host that handles the login. The process of the socket is the one that listens.
	login_pid: count &log &optional;
};

# Whether each of the fields is logged.
global conn_has_hid = F;
global conn_has_pid = F;
global conn_has_process = F;
global conn_has_exe = F;
global conn_has_cmdline = F;
global conn_has_user = F;
global conn_has_container = F;
global conn_has_entity_id = F;
global conn_has_host_sent = F;
global conn_has_host_received = F;

const known_conn_fields = vector("hid", "pid", "process", "exe", "cmdline",
    "user", "container", "entity_id", "host_sent", "host_received");

function select_fields(option_: string, fields: set[string]): set[string]
	{
	local unknown = copy(fields);

	for ( _, name in known_conn_fields )
		delete unknown[name];

	for ( field in unknown )
		Reporter::warning(fmt("Zeek Agent: ZeekAgent::conn_fields: there is no field %s: it can contain %s",
		    field, join_string_vec(known_conn_fields, ", ")));

	conn_has_hid = "hid" in fields;
	conn_has_pid = "pid" in fields;
	conn_has_process = "process" in fields;
	conn_has_exe = "exe" in fields;
	conn_has_cmdline = "cmdline" in fields;
	conn_has_user = "user" in fields;
	conn_has_container = "container" in fields;
	conn_has_entity_id = "entity_id" in fields;
	conn_has_host_sent = "host_sent" in fields;
	conn_has_host_received = "host_received" in fields;
	return fields;
	}

event zeek_init()
	{
	select_fields("ZeekAgent::conn_fields", conn_fields);
	Option::set_change_handler("ZeekAgent::conn_fields", select_fields, -100);
	}

function user_label(process: Process): string
	{
	return process?$user ? process$user : fmt("%d", process$uid);
	}

function log_orig(info: Conn::Info, process: Process)
	{
	if ( conn_has_hid )
		info$orig_hid = process$hid;

	if ( conn_has_pid && process?$pid )
		info$orig_pid = process$pid;

	if ( conn_has_process && process?$process )
		info$orig_process = process$process;

	if ( conn_has_exe && process?$exe )
		info$orig_exe = process$exe;

	if ( conn_has_cmdline && process?$cmdline )
		info$orig_cmdline = process$cmdline;

	if ( conn_has_user && process?$uid )
		info$orig_user = user_label(process);

	if ( conn_has_container && process?$container )
		info$orig_container = process$container;

	if ( conn_has_entity_id && process?$entity_id )
		info$orig_entity_id = process$entity_id;
	}

function log_resp(info: Conn::Info, process: Process)
	{
	if ( conn_has_hid )
		info$resp_hid = process$hid;

	if ( conn_has_pid && process?$pid )
		info$resp_pid = process$pid;

	if ( conn_has_process && process?$process )
		info$resp_process = process$process;

	if ( conn_has_exe && process?$exe )
		info$resp_exe = process$exe;

	if ( conn_has_cmdline && process?$cmdline )
		info$resp_cmdline = process$cmdline;

	if ( conn_has_user && process?$uid )
		info$resp_user = user_label(process);

	if ( conn_has_container && process?$container )
		info$resp_container = process$container;

	if ( conn_has_entity_id && process?$entity_id )
		info$resp_entity_id = process$entity_id;
	}

event connection_state_remove(c: connection)
	{
	if ( ! attribute_connections )
		return;

	finish_connection(c);

	if ( c?$orig_process )
		log_orig(c$conn, c$orig_process);

	if ( conn_has_host_sent && c?$orig_host_sent )
		c$conn$orig_host_sent = c$orig_host_sent;

	if ( conn_has_host_received && c?$orig_host_received )
		c$conn$orig_host_received = c$orig_host_received;

	if ( c?$resp_process )
		log_resp(c$conn, c$resp_process);

	if ( conn_has_host_sent && c?$resp_host_sent )
		c$conn$resp_host_sent = c$resp_host_sent;

	if ( conn_has_host_received && c?$resp_host_received )
		c$conn$resp_host_received = c$resp_host_received;
	}
