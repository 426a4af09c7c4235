##! Queries agents for the processes behind flows, and forwards the results to the nodes that see connections.

@load ./claims

module ZeekAgent;

export {
	## Whether to query agents for the process behind a connection.
	const attribute_connections = T &redef;

	## Whether only agents with an address in ``Site::local_nets``, and :zeek:see:`ZeekAgent::local_agents`, are queried for
	## attribution. It makes no difference where ``Site::local_nets`` is not set.
	option attribute_local_nets_only = T;

	## How often agents report new flows. Zeek waits five seconds after a TCP connection has ended.
	option claim_interval = 0.25sec;

	## The same while there are many agents, unless :zeek:see:`ZeekAgent::claim_interval` is longer.
	option claim_interval_many = 1sec;

	## How many agents that report flows are many. They count as few again when there are less than four fifths of it.
	option many_agents = 500;

	## How often agents that do not record events report their open sockets.
	option socket_poll_interval = 5sec;

	## How often agents report changed accounts.
	option user_interval = 60sec;

	## Maximum length of a process's command line. A process has up to 2 MB, and Zeek keeps those of many flows.
	const max_cmdline = 8192 &redef;

	## Maximum number of users whose names are remembered per agent.
	const max_users = 100000 &redef;

	## Forwards claims to the workers: rows as JSON, and their time if the rows have none.
	global claim_rows: event(agent_id: string, at: time, rows: string);

	## Forwards user names to the workers, as JSON.
	global user_rows: event(agent_id: string, is_gone: bool, rows: string);
}

# What an agent reports of a flow's endpoint: its beginning, its end, or both. Both are unset where the flow was only listed; then the
# state and the time, if there is one, are used.
type ClaimRow: record {
	began: time &optional;
	ended: time &optional;
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
	bytes_sent: count &optional;
	bytes_received: count &optional;
	is_event: bool &default=T;
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

const flow_columns = "pid, process, uid, protocol, local_addr, local_port, remote_addr, remote_port, exe, cookie, "
    + "container_id, entity_id";

# One row for a flow that begins and ends between two reports. Nearly all others that end were reported before, with their
# command line.
const flow_end =
    "max(CASE WHEN state IN ('closed', 'failed', 'expired') THEN time END)";
const flow_events = "SELECT min(CASE WHEN state = 'established' THEN time END) AS \"began:time\", "
    + flow_end + " AS \"ended:time\", direction, " + flow_columns +
    ", max(CASE WHEN state <> 'closed' THEN cmdline END) AS cmdline, " +
    "max(translated_local_addr) AS \"translated_local_addr:address\", " +
    "max(translated_local_port) AS \"translated_local_port:count\", " +
    "max(translated_remote_addr) AS \"translated_remote_addr:address\", " +
    "max(translated_remote_port) AS \"translated_remote_port:count\"%s " + "FROM sockets_events WHERE remote_addr IS NOT NULL AND pid IS NOT NULL AND state <> 'active'%s GROUP BY direction, "
    + flow_columns + "%s ORDER BY min(seq)";
# What agents that count bytes tell of a flow that is over, and the table by which they are known.
const flow_bytes = ", max(bytes_sent) AS \"bytes_sent:count\", max(bytes_received) AS \"bytes_received:count\"";
const counting_agents = set("connections");
# Zeek may still have their connections.
const recent_flows = fmt(flow_events, "", " AND time > unixepoch() - 120",
    " HAVING coalesce(" + flow_end + ", unixepoch()) > unixepoch() - 70");

# How many user names there are of each agent, and the agents of which it was reported that they have too many.
global user_numbers: table[string] of count;
global agents_over_users: set[string];

# Agents that are queried for attribution, and the queries that they get.
global claimants: set[string];
global claimant_queries: set[string];
global claim_queries: set[string];
global are_claimants_many = F;

# Whether the site says what is local, apart from private addresses, which Zeek adds.
global has_local_nets = F;

global claims_taken = 0;
const ended_states = set("closed", "failed", "expired");

function to_transport_port(number: count, protocol: count): port
	{
	if ( protocol == 6 )
		return count_to_port(number, tcp);

	switch ( protocol )
		{
		case 17:
			return count_to_port(number, udp);
		case 1, 58:
			return count_to_port(number, icmp);
		default:
			return count_to_port(number, unknown_transport);
		}
	}

# What the rows of a batch have in common.
type ClaimSource: record {
	agent_id: string;
	host: string;
	is_local: bool;
	## The address looked up last, and whether claims for it count.
	address: addr &default=0.0.0.0;
	is_counted: bool &default=F;
};

function is_translated(row: ClaimRow): bool
	{
	return row?$translated_local_addr
	    && row?$translated_local_port
	    && row?$translated_remote_addr
	    && row?$translated_remote_port;
	}

function is_row_of(owner: Owner, row: ClaimRow, is_end: bool): bool
	{
	return owner$pid == row$pid
	    && ( row?$process ? owner?$process && owner$process == row$process : ! owner?$process )
	    && ( row?$exe ? owner?$exe && owner$exe == row$exe : ! owner?$exe )
	    && ( row?$cmdline ? owner?$cmdline && owner$cmdline == row$cmdline : ! owner?$cmdline || is_end )
	    && ( row?$uid ? owner?$uid && owner$uid == row$uid : ! owner?$uid )
	    && ( row?$container_id ? owner?$container && owner$container == row$container_id : ! owner?$container );
	}

# The process in a row. Those of flows before it are the same record, unless the process has changed. Agents report the
# command line with the beginning of a flow.
function owner_in(row: ClaimRow, source: ClaimSource): Owner
	{
	local id = row?$entity_id ? row$entity_id : cat(row$pid);

	if ( row?$cmdline && |row$cmdline| > max_cmdline )
		row$cmdline = row$cmdline[0:max_cmdline];

	if ( [source$agent_id, id] in owners )
		{
		local known = owners[source$agent_id, id];

		if ( is_row_of(known, row, ! row?$began) )
			return known;
		}

	local owner = Owner($hid=source$agent_id, $host=source$host, $pid=row$pid);

	if ( row?$process )
		owner$process = row$process;

	if ( row?$exe )
		owner$exe = row$exe;

	if ( row?$cmdline )
		owner$cmdline = row$cmdline;

	if ( row?$uid )
		owner$uid = row$uid;

	if ( row?$container_id )
		owner$container = row$container_id;

	if ( row?$entity_id )
		owner$entity_id = row$entity_id;

	if ( |owners| >= max_owners )
		clear_table(owners);

	owners[source$agent_id, id] = owner;
	return owner;
	}

function claim_in(row: ClaimRow, source: ClaimSource): Claim
	{
	local claim = Claim($owner=owner_in(row, source), $is_event=row$is_event);

	if ( row?$cookie )
		claim$cookie = row$cookie;

	if ( row?$began )
		claim$since = row$began;

	if ( row?$ended )
		claim$until = row$ended;

	if ( row?$direction && row$direction == "inbound" )
		claim$is_inbound = T;

	return claim;
	}

# Whether a row is about the flow of a claim.
function is_of_claim(row: ClaimRow, source: ClaimSource, claim: Claim): bool
	{
	return same_flow(claim, source$agent_id, row?$cookie ? row$cookie : 0, row$pid,
	    ! row?$began);
	}

# An agent corrects the process of a flow that was accepted or read late. Says whether it did so.
function correct(claim: Claim, row: ClaimRow, source: ClaimSource): bool
	{
	if ( ! row?$cookie || row$cookie != claim$cookie || ! row$is_event )
		return F;

	local owner = claim$owner;

	if ( owner$pid == row$pid
	    && ( ! row?$entity_id || ! owner?$entity_id || row$entity_id == owner$entity_id ) )
		return F;

	claim$owner = owner_in(row, source);
	return T;
	}

# Looks for a row's flow in the table, and brings what is there up to date. Says whether it was found. A new socket at the
# same ends means that the one before has gone.
function update_waiting(row: ClaimRow, source: ClaimSource, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port): bool
	{
	for ( _, known in waiting_claims(local_h, local_p, remote_h, remote_p) )
		{
		if ( is_of_claim(row, source, known) )
			{
			correct(known, row, source);

			if ( row?$began && ! known?$since )
				known$since = row$began;

			if ( row?$ended )
				end_waiting(local_h, local_p, remote_h, remote_p, known, row$ended);

			return T;
			}

		if ( row?$began && ! known?$until && known$owner$hid == source$agent_id )
			end_waiting(local_h, local_p, remote_h, remote_p, known, row$began);
		}

	return F;
	}

# Whether a claim's own address can be on the wire. Most rows of a batch have the same one.
function counts_here(a: addr, source: ClaimSource): bool
	{
	if ( source$is_local )
		return T;

	if ( a != source$address )
		{
		source$address = a;
		source$is_counted = is_outer_address(source$agent_id, a);
		}

	return source$is_counted;
	}

# Takes a row that waits for a connection. Says whether there was room.
function take_waiting(row: ClaimRow, source: ClaimSource, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port): bool
	{
	if ( [local_h, local_p, remote_h, remote_p] in claims
	    && update_waiting(row, source, local_h, local_p, remote_h, remote_p) )
		return T;

	local claim = claim_in(row, source);

	if ( ! add_waiting(local_h, local_p, remote_h, remote_p, claim) )
		return F;

	++claims_taken;

	if ( ! is_translated(row)
	    && ( is_unspecified(local_h) || ! counts_here(local_h, source) ) )
		add_translated(local_p, remote_h, remote_p, claim);

	return T;
	}

# Whether a flow that began before a connection can only be that connection, as there was none before.
function is_first(c: connection, began: time): bool
	{
	local id = c$id;
	return began + claim_slack >= c$start_time
	    && [id$orig_h, id$orig_p, id$resp_h, id$resp_p] !in recent_ends;
	}

# Notes how many bytes the host of an endpoint counted, when the flow is over there.
function note_bytes(c: connection, is_orig: bool, row: ClaimRow)
	{
	if ( row?$bytes_sent )
		{
		if ( is_orig )
			c$orig_host_sent = row$bytes_sent;
		else
			c$resp_host_sent = row$bytes_sent;
		}

	if ( row?$bytes_received )
		{
		if ( is_orig )
			c$orig_host_received = row$bytes_received;
		else
			c$resp_host_received = row$bytes_received;
		}
	}

# Takes a row for the ends that a connection has on the wire, and attributes the connection if it is there. Nearly all rows
# are the first one about an endpoint of a connection, or the one about its end.
function take_row(row: ClaimRow, source: ClaimSource, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port)
	{
	local id = conn_id($orig_h=local_h, $orig_p=local_p, $resp_h=remote_h,
	    $resp_p=remote_p, $proto=row$protocol);

	if ( ! counts_here(local_h, source) || ! connection_exists(id) )
		{
		# What an agent reports late may be over for Zeek.
		if ( ! row?$ended
		    || row$ended + linger_time(local_p) > network_time()
		    || row$ended + claim_lifetime > network_time()
		    || [local_h, local_p, remote_h, remote_p] in claims )
			take_waiting(row, source, local_h, local_p, remote_h, remote_p);
		return;
		}

	local c = lookup_connection(id);
	local is_orig = c$id$orig_p == local_p && c$id$orig_h == local_h;

	if ( is_orig ? c?$orig_claim : c?$resp_claim )
		{
		local known = is_orig ? c$orig_claim : c$resp_claim;

		if ( is_of_claim(row, source, known) )
			{
			if ( row?$ended )
				{
				known$until = row$ended;
				note_bytes(c, is_orig, row);
				}

			if ( row?$began && ! known?$since )
				known$since = row$began;

			if ( row$pid != known$owner$pid && correct(known, row, source) )
				attribute(c, is_orig, known);

			return;
			}

		if ( row?$began && ! known?$until && known$owner$hid == source$agent_id )
			known$until = row$began;
		}
	else if ( row?$began
	    && row$began <= c$start_time + c$duration + claim_slack
	    && ( row$began >= c$start_time || is_first(c, row$began) )
	    && [local_h, local_p, remote_h, remote_p] !in claims )
		{
		++claims_taken;
		attribute(c, is_orig, claim_in(row, source));

		if ( row?$ended )
			note_bytes(c, is_orig, row);

		return;
		}

	if ( take_waiting(row, source, local_h, local_p, remote_h, remote_p) )
		{
		decide(c, is_orig, local_h, local_p, remote_h, remote_p);

		if ( row?$ended
		    && ( is_orig ? c?$orig_claim && is_of_claim(row, source, c$orig_claim) : c?$resp_claim && is_of_claim(row, source, c$resp_claim) ) )
			note_bytes(c, is_orig, row);

		return;
		}

	# Connections have room.
	if ( is_orig ? ! c?$orig_claim : ! c?$resp_claim )
		{
		local claim = claim_in(row, source);

		if ( overlaps(claim, span_of(c)) )
			{
			--claim_counts["refused"];
			++claims_taken;
			attribute(c, is_orig, claim);
			}
		}
	}

function is_same_socket(row: ClaimRow, source: ClaimSource, claim: Claim): bool
	{
	return same_flow(claim, source$agent_id, row?$cookie ? row$cookie : 0, row$pid, T);
	}

# Removes the claim of a flow for ends that are now known not to be on the wire.
function withdraw(row: ClaimRow, source: ClaimSource, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port)
	{
	for ( _, claim in waiting_claims(local_h, local_p, remote_h, remote_p) )
		if ( is_same_socket(row, source, claim) )
			remove_waiting(local_h, local_p, remote_h, remote_p, claim);

	local id = conn_id($orig_h=local_h, $orig_p=local_p, $resp_h=remote_h,
	    $resp_p=remote_p, $proto=row$protocol);

	if ( ! connection_exists(id) )
		return;

	local c = lookup_connection(id);
	local is_orig = c$id$orig_p == local_p && c$id$orig_h == local_h;

	if ( is_orig ? c?$orig_claim && is_same_socket(row, source, c$orig_claim) :
	    c?$resp_claim && is_same_socket(row, source, c$resp_claim) )
		detach(c, is_orig);
	}

# Takes a row with the addresses on the far side of a translation. Another flow may have the near ones on the wire: when a
# container and its host use the same port, one of them gets another one. On the inside, they are those of this flow.
function take_translated(row: ClaimRow, source: ClaimSource, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port)
	{
	take_row(row, source, row$translated_local_addr, to_transport_port(
	    row$translated_local_port, row$protocol),
	    row$translated_remote_addr, to_transport_port(
	    row$translated_remote_port, row$protocol));

	if ( source$is_local )
		take_row(row, source, local_h, local_p, remote_h, remote_p);
	else
		withdraw(row, source, local_h, local_p, remote_h, remote_p);
	}

# Completes the times of a row, by Zeek's clock.
function set_times(row: ClaimRow, at: time, offset: interval)
	{
	if ( ! row?$began && ! row?$ended )
		{
		row$is_event = row?$time_;

		if ( row?$state && row$state in ended_states )
			row$ended = row?$time_ ? row$time_ : at;
		else
			row$began = row?$time_ ? row$time_ : at;
		}

	if ( offset == 0sec )
		return;

	if ( row?$began )
		row$began = row$began + offset;

	if ( row?$ended )
		row$ended = row$ended + offset;
	}

function take_claims(agent_id: string, at: time, rows: string)
	{
	local parsed = from_json(rows, ClaimRows);

	if ( ! parsed$valid )
		{
		Reporter::error(fmt("Zeek Agent: flows of agent %s are invalid%s", agent_id,
		    reason_of(parsed)));
		return;
		}

	local source = ClaimSource($agent_id=agent_id, $host=hostname_of(agent_id),
	    $is_local=is_local_agent(agent_id));
	local offset = agent_id in agents ? agents[agent_id]$clock_offset : 0sec;

	for ( _, row in parsed$v as ClaimRows )
		{
		if ( ! row?$pid
		    || ! row?$protocol
		    || ! row?$local_port
		    || ! row?$remote_addr
		    || ! row?$remote_port )
			next;

		set_times(row, at, offset);

		local local_h = row?$local_addr ? row$local_addr : 0.0.0.0;
		local local_p = to_transport_port(row$local_port, row$protocol);
		local remote_p = to_transport_port(row$remote_port, row$protocol);

		if ( row?$translated_local_addr && is_translated(row) )
			take_translated(row, source, local_h, local_p, row$remote_addr, remote_p);
		else
			take_row(row, source, local_h, local_p, row$remote_addr, remote_p);
		}

	claim_counts["taken"] += claims_taken;
	claims_taken = 0;
	}

function add_user(agent_id: string, uid: count, name: string)
	{
	local number = agent_id in user_numbers ? user_numbers[agent_id] : 0;

	if ( number < max_users )
		{
		user_names[agent_id, uid] = name;
		user_numbers[agent_id] = number + 1;
		return;
		}

	if ( agent_id !in agents_over_users )
		Reporter::warning(fmt("Zeek Agent: agent %s (%s) reports more than %d users (ZeekAgent::max_users): others have no name",
		    agent_id, hostname_of(agent_id), max_users));

	add agents_over_users[agent_id];
	}

function remove_user(agent_id: string, uid: count)
	{
	delete user_names[agent_id, uid];

	if ( --user_numbers[agent_id] == 0 )
		delete user_numbers[agent_id];
	}

function take_users(agent_id: string, is_gone: bool, rows: string)
	{
	local parsed = from_json(rows, UserRows);

	if ( ! parsed$valid )
		{
		Reporter::error(fmt("Zeek Agent: users of agent %s are invalid%s", agent_id,
		    reason_of(parsed)));
		return;
		}

	if ( agent_id !in agents )
		return;

	for ( _, row in parsed$v as UserRows )
		{
		# Ids have 32 bits.
		if ( ! row?$uid || ! row?$name || row$uid != /[0-9]{1,10}/ )
			next;

		local uid = to_count(row$uid);

		if ( ! is_gone && [agent_id, uid] !in user_names )
			add_user(agent_id, uid, row$name);
		else if ( is_gone
		    && [agent_id, uid] in user_names
		    && user_names[agent_id, uid] == row$name )
			remove_user(agent_id, uid);
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

# Where claims of an agent are matched. All workers: any of them may see its connections.
function claim_topic(agent_id: string): string
	{
	return Cluster::worker_topic;
	}

function hand_on_flows(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	if ( Cluster::is_enabled() )
		Cluster::publish(claim_topic(ctx$agent_id), claim_rows, ctx$agent_id,
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

# Whether connections of this Zeek can have one of an agent's addresses.
function may_claim(agent_id: string): bool
	{
	if ( ! attribute_local_nets_only
	    || ! has_local_nets
	    || is_local_agent(agent_id) )
		return T;

	if ( agent_id !in agents || ! agents[agent_id]$hello?$addresses )
		return F;

	for ( a in agents[agent_id]$hello$addresses )
		if ( Site::is_local_addr(a) && a !in shared_subnets )
			return T;

	return F;
	}

function is_claimant(agent_id: string): bool
	{
	return agent_id in claimants;
	}

# What was there before the agent or a worker came.
function ask_for_present(agent_id: string)
	{
	if ( ! is_claimant(agent_id) || ! has_feature(agent_id, "batches") )
		return;

	local sockets = fmt("SELECT %s, cmdline, translated_local_addr, translated_local_port, translated_remote_addr, translated_remote_port FROM sockets WHERE remote_port > 0 AND pid IS NOT NULL",
	    flow_columns);
	query_anew("sockets", Query($sql_stmt=sockets, $on_rows=hand_on_flows),
	    agent_id);

	query_anew("recent flows", Query($sql_stmt=recent_flows,
	    $on_rows=hand_on_flows, $requires_tables=set("sockets_events")),
	    agent_id);

	query_anew("users", Query($sql_stmt="SELECT uid, name FROM users",
	    $on_rows=hand_on_users), agent_id);
	}

event agent_connected(agent_id: string) &priority=-5
	{
	if ( attribute_connections && is_owner() )
		for_agents(vector(agent_id), ask_for_present);
	}

function scheduled_claim_interval(): interval
	{
	return are_claimants_many && claim_interval_many > claim_interval ?
	    claim_interval_many : claim_interval;
	}

# Raised when what decides the interval may have changed.
event check_claim_interval()
	{
	local number = |claimants|;
	are_claimants_many = number >= many_agents || ( are_claimants_many && number >=
	    many_agents * 4 / 5 );
	local wanted = scheduled_claim_interval();

	for ( first_id in claim_queries )
		{
		local id = current_id(first_id);

		if ( id !in queries || queries[id]$query$schedule_ == wanted )
			next;

		queries[id]$query$schedule_ = wanted;
		replace_query(id);
		}
	}

# Whether the interval may have to be another one.
function note_claimants()
	{
	local number = |claimants|;

	if ( are_claimants_many ? number < many_agents * 4 / 5 : number >=
	    many_agents )
		event check_claim_interval();
	}

# An agent is now queried for attribution, or no longer.
function retarget_claims(agent_id: string)
	{
	for ( first_id in claimant_queries )
		retarget_query(current_id(first_id), agent_id);

	ask_for_present(agent_id);
	}

hook agent_said_hello(agent_id: string, is_new: bool)
	{
	local is_now = attribute_connections && may_claim(agent_id);

	if ( is_now == is_claimant(agent_id) )
		return;

	if ( is_now )
		add claimants[agent_id];
	else
		delete claimants[agent_id];

	note_claimants();

	if ( ! is_new )
		for_agents(vector(agent_id), retarget_claims);
	}

hook agent_removed(agent_id: string)
	{
	delete claimants[agent_id];
	note_claimants();
	}

# Raised when an option has changed that decides whose connections this Zeek sees.
event check_claimants()
	{
	if ( is_owner() )
		for_agents(all_agents(), function(agent_id: string)
			{
			if ( agent_id in agents )
				hook agent_said_hello(agent_id, agent_id in unserved);
			});
	}

function on_claim_interval(name: string, value: interval): interval
	{
	event check_claim_interval();
	return refuse_zero(name, value);
	}

function on_many_agents(name: string, value: count): count
	{
	event check_claim_interval();
	return value;
	}

function on_local_nets_only(name: string, value: bool): bool
	{
	event check_claimants();
	return value;
	}

function on_local_agents(name: string, value: set[string]): set[string]
	{
	event check_claimants();
	return value;
	}

function on_local_nets(name: string, value: set[subnet]): set[subnet]
	{
	has_local_nets = |value| > 0 && ! Site::private_address_space_is_local;

	for ( net in value )
		if ( net !in Site::private_address_space )
			has_local_nets = T;

	event check_claimants();
	return value;
	}

global is_worker_new = F;

event tell_new_workers()
	{
	is_worker_new = F;
	for_agents(all_agents(), ask_for_present);
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

# Before private addresses are added.
event zeek_init() &priority=100
	{
	has_local_nets = |Site::local_nets| > 0;
	}

function query_claimants(q: Query): string
	{
	local query_id = query_some(q, is_claimant);
	add claimant_queries[query_id];
	return query_id;
	}

event zeek_init()
	{
	if ( ! attribute_connections )
		return;

	add claim_queries[query_claimants(Query($sql_stmt=fmt(flow_events, flow_bytes, "",
	    ""), $on_rows=hand_on_flows, $schedule_=claim_interval,
	    $subscription=Events, $requires_tables=set(
	    "sockets_events") | counting_agents))];

	add claim_queries[query_claimants(Query($sql_stmt=fmt(flow_events, "", "", ""),
	    $on_rows=hand_on_flows, $schedule_=claim_interval,
	    $subscription=Events, $requires_tables=set("sockets_events"),
	    $if_missing_tables=counting_agents))];

	follow_options(query_claimants(Query($sql_stmt="SELECT uid, name FROM users",
	    $on_rows=hand_on_users, $schedule_=user_interval,
	    $subscription=Differences)), "ZeekAgent::user_interval");

	follow_options(query_claimants(Query($sql_stmt="SELECT pid, process, protocol, local_addr, local_port, remote_addr, remote_port FROM sockets",
	    $event_=socket_row, $schedule_=socket_poll_interval,
	    $subscription=Differences, $if_missing_tables=set(
	    "sockets_events"))), "ZeekAgent::socket_poll_interval");

	Option::set_change_handler("ZeekAgent::claim_interval", on_claim_interval);
	Option::set_change_handler("ZeekAgent::claim_interval_many",
	    on_claim_interval);
	Option::set_change_handler("ZeekAgent::many_agents", on_many_agents);
	Option::set_change_handler("ZeekAgent::attribute_local_nets_only",
	    on_local_nets_only);
	Option::set_change_handler("ZeekAgent::local_agents", on_local_agents);
	Option::set_change_handler("Site::local_nets", on_local_nets, -10);
	}

# How long the user names of an agent that left are kept, for connections that are logged later.
const departed_user_lifetime = 5min;
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
		remove_user(key$hid, key$uid);
	}

hook agent_removed(agent_id: string)
	{
	delete agents_over_users[agent_id];

	if ( are_users_stale )
		return;

	are_users_stale = T;
	schedule departed_user_lifetime { forget_users() };
	}
