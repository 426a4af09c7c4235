##! Queries agents for the processes behind flows, and forwards the results to the nodes that see connections.

@load ./claims

module ZeekAgent;

export {
	## Whether to query agents for the process behind a connection.
	const attribute_connections = T &redef;

	## How often agents report new flows. Zeek waits five seconds after a TCP connection has ended.
	option claim_interval = 0.25sec;

	## How often agents that do not record events report their open sockets.
	option socket_poll_interval = 5sec;

	## How often agents report changed accounts.
	option user_interval = 60sec;

	## Forwards claims to the workers: rows as JSON, and their time if the rows have none.
	global claim_rows: event(agent_id: string, at: time, rows: string);

	## Forwards user names to the workers, as JSON.
	global user_rows: event(agent_id: string, is_gone: bool, rows: string);

	## Raised when a connection is attributed to a process, and again if the agent corrects the process: that of a
	## connection that was accepted late.
	##
	## c: the connection.
	##
	## is_orig: whether the process is the originator's.
	##
	## process: the process.
	global connection_attributed: event(c: connection, is_orig: bool,
	    process: Process);
}

# What an agent tells of a flow's end.
type ClaimRow: record {
	time_: time &optional;
	pid: count &optional;
	process: string &optional;
	uid: count &optional;
	protocol: count &optional;
	local_addr: addr &optional;
	local_port: count &optional;
	remote_addr: addr &optional;
	remote_port: count &optional;
	state: string &optional;
	direction: string &optional;
	exe: string &optional;
	cmdline: string &optional;
	cookie: count &optional;
	container_id: string &optional;
	entity_id: string &optional;
	translated_local_addr: addr &optional;
	translated_local_port: count &optional;
	translated_remote_addr: addr &optional;
	translated_remote_port: count &optional;
};

type ClaimRows: vector of ClaimRow;

type UserRow: record {
	uid: string &optional;
	name: string &optional;
};

type UserRows: vector of UserRow;

type UserKey: record {
	hid: string;
	uid: count;
};

# A socket as agents without events tell of it.
type SocketRow: record {
	pid: count &optional;
	process: string &optional;
	protocol: count &optional;
	local_addr: addr &optional;
	local_port: count &optional;
	remote_addr: addr &optional;
	remote_port: count &optional;
};

const flow_columns = "pid, process, uid, protocol, local_addr, local_port, remote_addr, remote_port, exe, cmdline, "
    + "cookie, container_id, entity_id, "
    + "translated_local_addr, translated_local_port, translated_remote_addr, translated_remote_port";
const flow_events = "SELECT time AS time_, state, direction, " + flow_columns +
    " FROM sockets_events WHERE remote_addr IS NOT NULL AND pid IS NOT NULL";
const ended_states = set("closed", "failed", "expired");

function to_transport_port(number: count, protocol: count): port
	{
	switch ( protocol )
		{
		case 6:
			return count_to_port(number, tcp);
		case 17:
			return count_to_port(number, udp);
		case 1, 58:
			return count_to_port(number, icmp);
		default:
			return count_to_port(number, unknown_transport);
		}
	}

function process_in(row: ClaimRow, agent_id: string): Process
	{
	local process = Process($hid=agent_id, $host=hostname_of(agent_id),
	    $pid=row$pid);

	if ( row?$process )
		process$process = row$process;

	if ( row?$exe )
		process$exe = row$exe;

	if ( row?$cmdline )
		process$cmdline = row$cmdline;

	if ( row?$uid )
		process$uid = row$uid;

	if ( row?$container_id )
		process$container = row$container_id;

	if ( row?$entity_id )
		process$entity_id = row$entity_id;

	return process;
	}

function is_complete(row: ClaimRow): bool
	{
	return row?$pid
	    && row?$protocol
	    && row?$local_port
	    && row?$remote_addr
	    && row?$remote_port;
	}

function is_same_process(one: Process, other: Process): bool
	{
	if ( one?$entity_id && other?$entity_id )
		return one$entity_id == other$entity_id;

	return one?$pid && other?$pid && one$pid == other$pid;
	}

# Attributes an end of a connection that is there now, if it was not yet, or was to a process that is corrected.
function attribute(c: connection, is_orig: bool)
	{
	local process = process_of(c, is_orig);

	if ( ! process?$hid )
		return;

	if ( is_orig ? c?$orig_process && is_same_process(c$orig_process, process) :
	    c?$resp_process && is_same_process(c$resp_process, process) )
		return;

	if ( is_orig )
		c$orig_process = process;
	else
		c$resp_process = process;

	event connection_attributed(c, is_orig, process);
	}

function is_translated(row: ClaimRow): bool
	{
	return row?$translated_local_addr
	    && row?$translated_local_port
	    && row?$translated_remote_addr
	    && row?$translated_remote_port;
	}

# Takes a claim for the ends that a connection has on the wire, and attributes the connection if it is there.
function enter_claim(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, protocol: count, claim: Claim)
	{
	add_claim(local_h, local_p, remote_h, remote_p, claim);

	local id = conn_id($orig_h=local_h, $orig_p=local_p, $resp_h=remote_h,
	    $resp_p=remote_p, $proto=protocol);

	if ( ! connection_exists(id) )
		return;

	local c = lookup_connection(id);
	attribute(c, c$id$orig_h == local_h && c$id$orig_p == local_p);
	}

function take_claim(row: ClaimRow, agent_id: string, at: time, offset: interval)
	{
	local when_ = ( row?$time_ ? row$time_ : at ) + offset;
	local claim = Claim($process=process_in(row, agent_id),
	    $is_far_side_known=is_translated(row));

	if ( row?$state && row$state in ended_states )
		claim$until = when_;
	else
		claim$since = when_;

	if ( row?$direction && row$direction == "inbound" )
		claim$is_inbound = T;

	if ( row?$cookie )
		claim$cookie = row$cookie;

	enter_claim(row?$local_addr ? row$local_addr : 0.0.0.0, to_transport_port(
	    row$local_port, row$protocol), row$remote_addr, to_transport_port(
	    row$remote_port, row$protocol), row$protocol, claim);

	if ( claim$is_far_side_known )
		enter_claim(row$translated_local_addr, to_transport_port(
		    row$translated_local_port, row$protocol),
		    row$translated_remote_addr, to_transport_port(
		    row$translated_remote_port, row$protocol), row$protocol,
		    claim);
	}

function take_claims(agent_id: string, at: time, rows: string)
	{
	local parsed = from_json(rows, ClaimRows);

	if ( ! parsed$valid )
		{
		Reporter::error(fmt("Zeek Agent: flows of agent %s are invalid", agent_id));
		return;
		}

	local offset = agent_id in agents ? agents[agent_id]$clock_offset : 0sec;

	for ( _, row in parsed$v as ClaimRows )
		if ( is_complete(row) )
			take_claim(row, agent_id, at, offset);
	}

function take_users(agent_id: string, is_gone: bool, rows: string)
	{
	local parsed = from_json(rows, UserRows);

	if ( ! parsed$valid )
		return;

	for ( _, row in parsed$v as UserRows )
		{
		if ( ! row?$uid || ! row?$name || row$uid != /[0-9]+/ )
			next;

		local uid = to_count(row$uid);

		if ( ! is_gone && [agent_id, uid] !in user_names )
			user_names[agent_id, uid] = row$name;
		else if ( is_gone
		    && [agent_id, uid] in user_names
		    && user_names[agent_id, uid] == row$name )
			delete user_names[agent_id, uid];
		}
	}

event claim_rows(agent_id: string, at: time, rows: string)
	{
	take_claims(agent_id, at, rows);
	}

event user_rows(agent_id: string, is_gone: bool, rows: string)
	{
	take_users(agent_id, is_gone, rows);
	}

# Agents' answers, at the node that asks.

function hand_on_flows(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::worker_topic, claim_rows, ctx$agent_id,
		    ctx$host_time, rows as string);
	else
		take_claims(ctx$agent_id, ctx$host_time, rows as string);
	}

function hand_on_users(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	local is_gone = ctx?$change && ctx$change == Delete;

	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::worker_topic, user_rows, ctx$agent_id, is_gone, rows as
		    string);
	else
		take_users(ctx$agent_id, is_gone, rows as string);
	}

event ZeekAgent::socket_row(ctx: Context, columns: SocketRow)
	{
	if ( ! columns?$remote_port || columns$remote_port == 0 )
		return;

	local row: ClaimRow = columns;

	if ( ctx?$change && ctx$change == Delete )
		row$state = "closed";

	local rows = to_json(ClaimRows(row));
	hand_on_flows(ctx, ZeekAgentAPI::Batch($store="", $stream="", $low=0, $high=0,
	    $index=0, $last=T), rows);
	}

# What was there before the agent or a worker came.
function ask_for_present(agent_id: string)
	{
	if ( ! has_feature(agent_id, "batches") )
		return;

	local sockets = fmt(
	    "SELECT %s FROM sockets WHERE remote_port > 0 AND pid IS NOT NULL",
	    flow_columns);
	query(Query($sql_stmt=sockets, $on_rows=hand_on_flows), Host, agent_id);

	local past = flow_events + " AND time > unixepoch() - 120";
	query(Query($sql_stmt=past, $on_rows=hand_on_flows, $requires_tables=set(
	    "sockets_events")), Host, agent_id);

	query(Query($sql_stmt="SELECT uid, name FROM users", $on_rows=hand_on_users),
	    Host, agent_id);
	}

event agent_connected(agent_id: string) &priority=-5
	{
	if ( attribute_connections && is_owner() )
		ask_for_present(agent_id);
	}

global is_worker_new = F;

event tell_new_workers()
	{
	is_worker_new = F;

	for ( agent_id in connected_agents() )
		ask_for_present(agent_id);
	}

event Cluster::node_up(name: string, id: string) &priority=-5
	{
	if ( ! attribute_connections || ! is_owner() || is_worker_new )
		return;

	if ( name in Cluster::nodes
	    && Cluster::nodes[name]$node_type == Cluster::WORKER )
		{
		is_worker_new = T;
		schedule 1sec { tell_new_workers() };
		}
	}

event zeek_init()
	{
	if ( ! attribute_connections )
		return;

	follow_options(query(Query($sql_stmt=flow_events, $on_rows=hand_on_flows,
	    $schedule_=claim_interval, $subscription=Events,
	    $requires_tables=set("sockets_events"))),
	    "ZeekAgent::claim_interval");

	follow_options(query(Query($sql_stmt="SELECT uid, name FROM users",
	    $on_rows=hand_on_users, $schedule_=user_interval,
	    $subscription=Differences)), "ZeekAgent::user_interval");

	follow_options(query(Query($sql_stmt="SELECT pid, process, protocol, local_addr, local_port, remote_addr, remote_port FROM sockets",
	    $event_=socket_row, $schedule_=socket_poll_interval,
	    $subscription=Differences, $if_missing_tables=set(
	    "sockets_events"))), "ZeekAgent::socket_poll_interval");
	}

# User names last as long as the claims that they belong to.
global are_users_stale = F;

event forget_users()
	{
	# A Zeek that ends does at once what is scheduled, before it logs the last connections.
	if ( zeek_is_terminating() )
		return;

	are_users_stale = F;
	local gone: vector of UserKey;

	for ( [agent_id, uid] in user_names )
		if ( agent_id !in agents )
			gone += UserKey($hid=agent_id, $uid=uid);

	for ( _, key in gone )
		delete user_names[key$hid, key$uid];
	}

hook agent_removed(agent_id: string)
	{
	if ( are_users_stale )
		return;

	are_users_stale = T;
	schedule claim_lifetime { forget_users() };
	}
