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

	## How long the line of an established TCP connection waits for a process that its agent has not reported yet, as
	## while an agent changes its gateway. Zero turns that off. Claims are kept for ten seconds after the end of their
	## flow, five of which are over by then, so a longer time has no effect.
	const late_claim_wait = 4sec &redef;

	## How many lines wait at most.
	const max_late_lines = 10000 &redef;
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

# Connections whose line waits, or is about to.
type LateConnection: record {
	c: connection;
	unknown: UnknownEnds;
};

global late_connections: table[string] of LateConnection &create_expire=1min;

# In which both ends took part.
const established_states = set("SF", "S1", "S2", "S3", "RSTO", "RSTR");

event zeek_init() &priority=-10
	{
	if ( ! attribute_connections || late_claim_wait == 0sec )
		return;

	Log::set_max_delay_interval(Conn::LOG, late_claim_wait);

	if ( max_late_lines > Log::default_max_delay_queue_size )
		Log::set_max_delay_queue_size(Conn::LOG, max_late_lines);
	}

# Whether an agent with this address reports all flows.
function reports_flows(a: addr): bool
	{
	for ( agent_id in ids_by_address[a] )
		if ( agent_id in agents
		    && agents[agent_id]$hello?$tables
		    && "sockets_events" in agents[agent_id]$hello$tables )
			return T;

	return F;
	}

function may_come_late(c: connection, unknown: UnknownEnds): bool
	{
	if ( late_claim_wait == 0sec
	    || zeek_is_terminating()
	    || |late_connections| >= max_late_lines
	    || get_port_transport_proto(c$id$resp_p) != tcp
	    || ! c$conn?$conn_state
	    || c$conn$conn_state !in established_states )
		return F;

	return ( unknown$orig && reports_flows(c$id$orig_h) )
	    || ( unknown$resp && reports_flows(c$id$resp_h) );
	}

function log_ends(info: Conn::Info, c: connection)
	{
	if ( c?$orig_process )
		log_orig(info, c$orig_process);

	if ( c?$resp_process )
		log_resp(info, c$resp_process);
	}

function log_late(rec: any, id: Log::ID): bool
	{
	local info = rec as Conn::Info;

	if ( info$uid !in late_connections )
		return T;

	local late = late_connections[info$uid];
	delete late_connections[info$uid];

	finish_unknown(late$c, late$unknown);
	count_unknown(late$unknown);

	log_ends(info, late$c);
	return T;
	}

hook Log::log_stream_policy(rec: any, id: Log::ID)
	{
	if ( |late_connections| == 0 || id != Conn::LOG )
		return;

	local info = rec as Conn::Info;

	if ( info$uid in late_connections )
		Log::delay(id, rec, log_late);
	}

event connection_state_remove(c: connection)
	{
	if ( ! attribute_connections )
		return;

	local unknown = finish_connection(c);

	if ( unknown$orig || unknown$resp )
		{
		if ( may_come_late(c, unknown) )
			late_connections[c$uid] = LateConnection($c=c, $unknown=unknown);
		else
			count_unknown(unknown);
		}

	log_ends(c$conn, c);

	if ( conn_has_host_sent && c?$orig_host_sent )
		c$conn$orig_host_sent = c$orig_host_sent;

	if ( conn_has_host_received && c?$orig_host_received )
		c$conn$orig_host_received = c$orig_host_received;

	if ( conn_has_host_sent && c?$resp_host_sent )
		c$conn$resp_host_sent = c$resp_host_sent;

	if ( conn_has_host_received && c?$resp_host_received )
		c$conn$resp_host_received = c$resp_host_received;
	}
