##! Claims of agents about the process at each endpoint of a flow, and their matching to connections.
##!
##! A claim is a process at an endpoint of a flow during some time. It counts only for addresses that its agent announced, so that
##! hosts in different networks with the same private addresses are not confused.
##!
##! A claim is kept with its connection while Zeek has one, and is removed with it. Other claims wait in a table: those of flows that
##! Zeek does not see, or not yet, or only with translated addresses.

@load base/frameworks/telemetry
@load ../framework

module ZeekAgent;

export {
	## The process at one endpoint of a connection. It is unknown if ``hid`` is unset.
	type Process: record {
		## Id of the agent on its host.
		hid: string &optional;
		## Name of the host.
		host: string &optional;
		## Process id.
		pid: count &optional;
		## Name of the process.
		process: string &optional;
		## Path of the executable.
		exe: string &optional;
		## Command line.
		cmdline: string &optional;
		## Effective user id.
		uid: count &optional;
		## Name of that user.
		user: string &optional;
		## Id of the container it is in.
		container: string &optional;
		## Unique process id, never reused.
		entity_id: string &optional;
	};

	## Addresses that many hosts have, such as those of loopback interfaces and container bridges. Claims for them
	## count only when they come from :zeek:see:`ZeekAgent::local_agents`.
	option shared_subnets: set[subnet] = {
		127.0.0.0/8,
		[::1]/128,
		169.254.0.0/16,
		[fe80::]/10,
		172.17.0.0/16
	};

	## Agents whose internal traffic this Zeek monitors, by id or host name, ``*`` for all: those on whose
	## loopback interface or bridge it listens. Their claims count for any address.
	option local_agents: set[string] = {};

	## How long a claim is kept after its flow has ended, at least. It is kept longer while Zeek may still have a
	## connection of the flow. A larger value is needed only by scripts that look up flows of the past with
	## :zeek:see:`ZeekAgent::process_at`.
	option claim_lifetime = 5sec;

	## How long a claim is kept if the end of its flow is not reported. Agents report flows of UDP and ICMP again
	## after a pause; a claim for one is kept for as long as Zeek would keep its connection.
	option open_claim_lifetime = 1day;

	## Maximum number of claims without a connection kept per agent. If there are more, those whose flows have ended
	## are removed, the oldest first; if none has, the new claim is refused.
	option max_claims = 200000;

	## The same for all agents together. The agent with the most claims has to give way.
	option max_claims_total = 500000;

	## Maximum difference between the times of a claim and of a connection.
	option claim_slack = 2sec;

	## The process at one endpoint of a connection, if known at this time. Check for ``?$hid``.
	##
	## c: the connection.
	##
	## is_orig: whether to use the originator's endpoint.
	global process_of: function(c: connection, is_orig: bool): Process;

	## The process at an endpoint of a flow during a period. Check for ``?$hid``. Claims are kept until the flow's connection is
	## removed from Zeek, and for :zeek:see:`ZeekAgent::claim_lifetime`.
	global process_at: function(local_h: addr, local_p: port, remote_h: addr,
	    remote_p: port, from: time, to: time): Process;

	## Counts claims: ``taken``; of these ``evicted`` before their time, because there were too many; and ``refused`` for that
	## reason. ``unattributed`` counts the endpoints of connections that have an agent's address and no known process.
	## Also available as metrics, as ``zeek_agent_claims_total`` and ``zeek_agent_unattributed_endpoints_total``.
	global claim_counts: table[string] of count = table() &default=0;

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

# A process as an agent describes it, shared by all of its claims. Its user's name may become known later.
type Owner: record {
	hid: string;
	host: string;
	pid: count;
	process: string &optional;
	exe: string &optional;
	cmdline: string &optional;
	uid: count &optional;
	container: string &optional;
	entity_id: string &optional;
};

type Claim: record {
	owner: Owner;
	## The kernel's socket cookie.
	cookie: count &default=0;
	## When the flow began; unset if only its end was reported.
	since: time &optional;
	## When it ended; unset while it exists.
	until: time &optional;
	## Until when it waits for a connection.
	keep_until: time &optional;
	is_inbound: bool &default=F;
	## Whether it comes from an event, and not from a list of what exists.
	is_event: bool &default=F;
	## Whether its agent does not know the addresses on the wire.
	is_translated: bool &default=F;
	## Whether it was removed from the table.
	is_removed: bool &default=F;
};

type Claims: vector of Claim;

redef record connection += {
	## The originator's process.
	orig_process: Process &optional;
	## The responder's process.
	resp_process: Process &optional;
	## The claims that these come from.
	orig_claim: Claim &optional;
	resp_claim: Claim &optional;
	## Bytes of payload that the originator's host counted, if it reported the end before this connection was removed.
	orig_host_sent: count &optional;
	orig_host_received: count &optional;
	## The same for the responder's host.
	resp_host_sent: count &optional;
	resp_host_received: count &optional;
};

# Claims without a connection, by local and remote end. Few ends have several claims. How long they are kept is decided when
# they expire.
global claims_expired: function(t: table[addr, port, addr, port] of Claim,
    local_h: addr, local_p: port, remote_h: addr, remote_p: port): interval;
global claims: table[addr, port, addr, port] of Claim &write_expire=5sec
    &expire_func=claims_expired;
global more_claims: table[addr, port, addr, port] of Claims;

# Those whose local address is not the one on the wire: it is not known, or translated on the way, as for containers,
# and the agent does not know how. They are in the table above, too, and are removed together.
# Translation of a source usually keeps its port; translation of a destination changes that, too.
global outbound_claims: table[port, addr, port] of Claims;
global inbound_claims: table[addr, port] of Claims;

# Ends that are used again and again keep the newest ones.
const claims_per_flow = 16;

# A claim of a flow that has ended.
type EndedClaim: record {
	claim: Claim;
	local_h: addr;
	local_p: port;
	remote_h: addr;
	remote_p: port;
};

# The claims of an agent that are in the table.
type AgentClaims: record {
	number: count &default=0;
	## Those that ended, in this order; the ones before the head have been removed.
	ended: vector of EndedClaim &default=vector();
	head: count &default=0;
};

global claims_by_agent: table[string] of AgentClaims;
global claims_total = 0;

# Processes, by agent, and entity id or pid. Claims keep theirs when it is removed here.
global owners: table[string, string] of Owner &read_expire=1min;
const max_owners = 20000;

# When a connection between two ends was over. Another one that follows soon may be logged before its own claims come,
# and must not get those of the one before.
global recent_ends: table[addr, port, addr, port] of time &create_expire=10sec;

global user_names: table[string, count] of string;

# Agents of which it was reported that they have too many claims.
global crowded_agents: set[string] &create_expire=1day;
global was_total_reported = F;

function is_local_agent(agent_id: string): bool
	{
	return |local_agents| > 0
	    && ( "*" in local_agents || agent_id in local_agents || hostname_of(agent_id) in local_agents );
	}

function has_address(agent_id: string, a: addr): bool
	{
	return a in ids_by_address && agent_id in ids_by_address[a];
	}

# Whether a translated flow can have that address: of hosts, not of what is inside them.
function is_outer_address(agent_id: string, a: addr): bool
	{
	return has_address(agent_id, a) && a !in shared_subnets;
	}

function is_unspecified(a: addr): bool
	{
	return a == 0.0.0.0 || a == [::];
	}

# Whether a claim's own address can be on the wire that this Zeek sees.
function counts_for(agent_id: string, a: addr): bool
	{
	return is_outer_address(agent_id, a) || is_local_agent(agent_id);
	}

# Whether an endpoint with this address may have a process.
function has_agent(a: addr): bool
	{
	return |local_agents| > 0 || ( a in ids_by_address && a !in shared_subnets );
	}

function same_flow(known: Claim, agent_id: string, cookie: count, pid: count,
    is_end: bool): bool
	{
	if ( known$owner$hid != agent_id )
		return F;

	if ( known$cookie != 0 && cookie != 0 )
		return known$cookie == cookie;

	return known$owner$pid == pid && ( is_end || ! known?$until );
	}

# How long a connection may be in Zeek after its end, or its last packet.
function linger_time(local_p: port): interval
	{
	local slack = 5sec;

	switch ( get_port_transport_proto(local_p) )
		{
		case tcp:
			return tcp_close_delay + slack;
		case udp:
			return udp_inactivity_timeout + slack;
		case icmp:
			return icmp_inactivity_timeout + slack;
		default:
			return icmp_inactivity_timeout + slack;
		}
	}

# A time that an agent reports, which is not in the future, whatever the agent's clock says.
function past(at: time): time
	{
	if ( at <= network_time() )
		return at;

	# Zeek has no time before the first packet.
	local now = current_time();
	return at <= now ? at : network_time() > now ? network_time() : now;
	}

# Until when to keep a claim that has no connection.
function keep_time(claim: Claim, local_p: port): time
	{
	if ( claim?$until )
		{
		local linger = linger_time(local_p);
		return past(claim$until) + ( linger > claim_lifetime ? linger : claim_lifetime );
		}

	if ( claim$is_event && get_port_transport_proto(local_p) != tcp )
		return network_time() + linger_time(local_p);

	return ( claim?$since ? past(claim$since) : network_time() ) +
	    open_claim_lifetime;
	}

# How long a claim is still kept.
function time_left(claim: Claim): interval
	{
	if ( ! claim?$until && claim$owner$hid !in agents )
		return 0sec;

	local left = claim$keep_until - network_time();
	# Its agent may go before.
	return left > 1min && ! claim?$until ? 1min : left;
	}

function remove_from(there: Claims): Claims
	{
	local left = Claims();

	for ( _, claim in there )
		if ( ! claim$is_removed )
			left += claim;

	return left;
	}

function remove_translated(local_p: port, remote_h: addr, remote_p: port)
	{
	if ( [local_p, remote_h, remote_p] in outbound_claims )
		{
		local outbound = remove_from(outbound_claims[local_p, remote_h, remote_p]);

		if ( |outbound| > 0 )
			outbound_claims[local_p, remote_h, remote_p] = outbound;
		else
			delete outbound_claims[local_p, remote_h, remote_p];
		}

	if ( [remote_h, remote_p] in inbound_claims )
		{
		local inbound = remove_from(inbound_claims[remote_h, remote_p]);

		if ( |inbound| > 0 )
			inbound_claims[remote_h, remote_p] = inbound;
		else
			delete inbound_claims[remote_h, remote_p];
		}
	}

# Notes that a claim is no longer in the table.
function count_out(claim: Claim, local_p: port, remote_h: addr, remote_p: port)
	{
	claim$is_removed = T;

	if ( claim$is_translated )
		remove_translated(local_p, remote_h, remote_p);

	local of_agent = claims_by_agent[claim$owner$hid];
	--of_agent$number;
	--claims_total;

	if ( of_agent$number == 0 )
		delete claims_by_agent[claim$owner$hid];
	}

# All claims in the table for two ends.
function waiting_claims(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port): Claims
	{
	if ( [local_h, local_p, remote_h, remote_p] !in claims )
		return Claims();

	local there = Claims(claims[local_h, local_p, remote_h, remote_p]);

	if ( [local_h, local_p, remote_h, remote_p] in more_claims )
		for ( _, claim in more_claims[local_h, local_p, remote_h, remote_p] )
			there += claim;

	return there;
	}

# Puts claims back after some were removed.
function keep_waiting(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, there: Claims)
	{
	if ( |there| == 0 )
		delete claims[local_h, local_p, remote_h, remote_p];
	else
		claims[local_h, local_p, remote_h, remote_p] = there[0];

	if ( |there| > 1 )
		more_claims[local_h, local_p, remote_h, remote_p] = there[1:];
	else
		delete more_claims[local_h, local_p, remote_h, remote_p];
	}

# Takes one claim out of the table.
function remove_waiting(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, claim: Claim)
	{
	count_out(claim, local_p, remote_h, remote_p);
	keep_waiting(local_h, local_p, remote_h, remote_p, remove_from(waiting_claims(
	    local_h, local_p, remote_h, remote_p)));
	}

# Goes over the claims at the head that were removed, and removes those whose time is over. The table alone would not do:
# Zeek never looks at entries from before the first packet.
function advance(of_agent: AgentClaims)
	{
	local head = of_agent$head;
	local number = |of_agent$ended|;

	while ( head < number )
		{
		local first = of_agent$ended[head];

		if ( ! first$claim$is_removed )
			{
			if ( first$claim$keep_until > network_time() )
				break;

			remove_waiting(first$local_h, first$local_p, first$remote_h, first$remote_p,
			    first$claim);
			}

		++head;
		}

	of_agent$head = head;

	if ( head == number )
		{
		of_agent$ended = vector();
		of_agent$head = 0;
		}
	else if ( head > 1000 && head > number / 2 )
		{
		of_agent$ended = of_agent$ended[head:];
		of_agent$head = 0;
		}
	}

# The agent with the most claims.
function largest_agent(): string
	{
	local largest = "";
	local number = 0;

	for ( agent_id, of_agent in claims_by_agent )
		if ( of_agent$number > number )
			{
			largest = agent_id;
			number = of_agent$number;
			}

	return largest;
	}

# Removes an agent's claim of the flow that ended first.
function evict(agent_id: string): bool
	{
	local of_agent = claims_by_agent[agent_id];
	advance(of_agent);

	if ( of_agent$head == |of_agent$ended| )
		return F;

	local oldest = of_agent$ended[of_agent$head];
	remove_waiting(oldest$local_h, oldest$local_p, oldest$remote_h,
	    oldest$remote_p, oldest$claim);
	++claim_counts["evicted"];
	return T;
	}

# Removes several, since it takes time to find the agent.
function evict_some(agent_id: string): bool
	{
	local number = 0;

	while ( number <= max_claims_total / 1000
	    && agent_id in claims_by_agent
	    && evict(agent_id) )
		++number;

	return number > 0;
	}

# Makes room for one more claim of an agent.
function make_room(agent_id: string): bool
	{
	if ( agent_id in claims_by_agent
	    && claims_by_agent[agent_id]$number >= max_claims )
		{
		if ( agent_id !in crowded_agents )
			{
			add crowded_agents[agent_id];
			Reporter::warning(fmt("Zeek Agent: agent %s (%s) reports more than %d flows without a connection (ZeekAgent::max_claims); their processes are forgotten early, or not taken at all",
			    agent_id, hostname_of(agent_id), max_claims));
			}

		if ( ! evict(agent_id) )
			return F;
		}

	if ( claims_total < max_claims_total )
		return T;

	if ( ! was_total_reported )
		{
		was_total_reported = T;
		Reporter::warning(fmt("Zeek Agent: agents report more than %d flows without a connection (ZeekAgent::max_claims_total); their processes are forgotten early, or not taken at all",
		    max_claims_total));
		}

	if ( evict_some(largest_agent()) )
		return T;

	return agent_id in claims_by_agent && evict(agent_id);
	}

function note_ended(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, claim: Claim)
	{
	local of_agent = claims_by_agent[claim$owner$hid];
	advance(of_agent);
	of_agent$ended += EndedClaim($claim=claim, $local_h=local_h, $local_p=local_p,
	    $remote_h=remote_h, $remote_p=remote_p);
	}

function append_bounded(there: Claims, claim: Claim)
	{
	if ( |there| >= claims_per_flow )
		there[0:1] = Claims();

	there += claim;
	}

# Enters a claim, which is in the list of its own ends as well and brought up to date there, for other ends on the wire.
function add_translated(local_p: port, remote_h: addr, remote_p: port,
    claim: Claim)
	{
	claim$is_translated = T;

	if ( [local_p, remote_h, remote_p] !in outbound_claims )
		outbound_claims[local_p, remote_h, remote_p] = Claims();

	append_bounded(outbound_claims[local_p, remote_h, remote_p], claim);

	if ( ! claim$is_inbound )
		return;

	if ( [remote_h, remote_p] !in inbound_claims )
		inbound_claims[remote_h, remote_p] = Claims();

	append_bounded(inbound_claims[remote_h, remote_p], claim);
	}

# Puts a claim into the table, where it waits for a connection. Says whether there was room.
function add_waiting(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, claim: Claim): bool
	{
	local agent_id = claim$owner$hid;

	if ( ! make_room(agent_id) )
		{
		++claim_counts["refused"];
		return F;
		}

	claim$is_removed = F;
	claim$keep_until = keep_time(claim, local_p);

	if ( [local_h, local_p, remote_h, remote_p] !in claims )
		claims[local_h, local_p, remote_h, remote_p] = claim;
	else
		{
		local there = waiting_claims(local_h, local_p, remote_h, remote_p);

		if ( |there| >= claims_per_flow )
			{
			count_out(there[0], local_p, remote_h, remote_p);
			there[0:1] = Claims();
			++claim_counts["evicted"];
			}

		there += claim;
		keep_waiting(local_h, local_p, remote_h, remote_p, there);
		}

	if ( agent_id !in claims_by_agent )
		claims_by_agent[agent_id] = AgentClaims();

	++claims_by_agent[agent_id]$number;
	++claims_total;

	if ( claim?$until )
		note_ended(local_h, local_p, remote_h, remote_p, claim);

	return T;
	}

# Notes the end of a flow whose claim is in the table.
function end_waiting(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, claim: Claim, until: time)
	{
	local is_new = ! claim?$until;
	claim$until = until;
	claim$keep_until = keep_time(claim, local_p);

	if ( ! is_new )
		return;

	note_ended(local_h, local_p, remote_h, remote_p, claim);
	# Counts as written, so that the table looks at it again.
	claims[local_h, local_p, remote_h, remote_p] = claims[local_h, local_p,
	    remote_h, remote_p];
	}

function distance(claim: Claim, start: time): interval
	{
	local apart = ( claim?$since ? claim$since : claim$until ) - start;
	return apart < 0sec ? -apart : apart;
	}

# The time in which a claim may be of a connection.
type Span: record {
	start: time;
	end: time;
	## Claims from before this time belong to the previous connection.
	not_before: time &default=double_to_time(0.0);
};

function overlaps(claim: Claim, span: Span): bool
	{
	if ( claim?$since && claim$since > span$end + claim_slack )
		return F;

	if ( claim?$until && claim$until + claim_slack < span$start )
		return F;

	return ( claim?$since ? claim$since : claim$until ) >= span$not_before;
	}

type LocalCheck: function(agent_id: string, a: addr): bool;

# Of the claims for an address, the number of the one that began nearest to a connection; -1 when there is none, or when
# several agents have one.
function nearest(found: Claims, has_local: LocalCheck, local_h: addr,
    span: Span): int
	{
	local best = -1;

	for ( i, claim in found )
		{
		if ( ! overlaps(claim, span) || ! has_local(claim$owner$hid, local_h) )
			next;

		if ( best >= 0 && found[best]$owner$hid != claim$owner$hid )
			return -1;

		if ( best < 0
		    || distance(claim, span$start) < distance(found[best], span$start) )
			best = i;
		}

	return best;
	}

# Of the claims for ends that do not have the address on the wire.
function nearest_translated(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, span: Span): Claims
	{
	local best = -1;

	if ( [local_p, remote_h, remote_p] in outbound_claims )
		{
		local outbound = outbound_claims[local_p, remote_h, remote_p];
		best = nearest(outbound, is_outer_address, local_h, span);

		if ( best >= 0 )
			return Claims(outbound[best]);
		}

	if ( [remote_h, remote_p] in inbound_claims )
		{
		local inbound = inbound_claims[remote_h, remote_p];
		best = nearest(inbound, is_outer_address, local_h, span);

		if ( best >= 0 )
			return Claims(inbound[best]);
		}

	return Claims();
	}

# The claim in the tables for a connection's endpoint, as a list of one; empty if there is none.
function find_waiting(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, span: Span): Claims
	{
	if ( [local_h, local_p, remote_h, remote_p] in claims )
		{
		local there = waiting_claims(local_h, local_p, remote_h, remote_p);
		local best = nearest(there, counts_for, local_h, span);

		if ( best >= 0 )
			return Claims(there[best]);
		}

	if ( |outbound_claims| == 0 )
		return Claims();

	return nearest_translated(local_h, local_p, remote_h, remote_p, span);
	}

# Adds the name of a process's user, which may be reported later than the process.
function name_user(process: Process)
	{
	if ( process?$uid
	    && ! process?$user
	    && [process$hid, process$uid] in user_names )
		process$user = user_names[process$hid, process$uid];
	}

# A process of its own for each who asks.
function process_in(owner: Owner): Process
	{
	local process: Process = owner;
	name_user(process);
	return process;
	}

function span_of(c: connection): Span
	{
	local id = c$id;
	local span = Span($start=c$start_time, $end=network_time());

	if ( c$duration > 0sec && c$start_time + c$duration < span$end )
		span$end = c$start_time + c$duration;

	if ( [id$orig_h, id$orig_p, id$resp_h, id$resp_p] !in recent_ends )
		return span;

	# Half way between the connections, so that clocks may differ a little.
	local gap = span$start - recent_ends[id$orig_h, id$orig_p, id$resp_h,
	    id$resp_p];

	if ( gap > 0sec && gap < claim_slack )
		span$not_before = span$start - gap / 2;

	return span;
	}

function protocol_number(local_h: addr, local_p: port): count
	{
	switch ( get_port_transport_proto(local_p) )
		{
		case tcp:
			return 6;
		case udp:
			return 17;
		case icmp:
			return is_v6_addr(local_h) ? 58 : 1;
		default:
			return 65535;
		}
	}

function process_at(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, from: time, to: time): Process
	{
	local span = Span($start=from, $end=to);
	local id = conn_id($orig_h=local_h, $orig_p=local_p, $resp_h=remote_h,
	    $resp_p=remote_p, $proto=protocol_number(local_h, local_p));

	if ( connection_exists(id) )
		{
		local c = lookup_connection(id);
		local is_orig = c$id$orig_h == local_h && c$id$orig_p == local_p;

		if ( is_orig ? c?$orig_claim && overlaps(c$orig_claim, span) : c?$resp_claim &&
		    overlaps(c$resp_claim, span) )
			return process_in(( is_orig ? c$orig_claim : c$resp_claim )$owner);
		}

	local found = find_waiting(local_h, local_p, remote_h, remote_p, span);
	return |found| > 0 ? process_in(found[0]$owner) : Process();
	}

function process_of(c: connection, is_orig: bool): Process
	{
	local id = c$id;

	if ( is_orig ? c?$orig_process : c?$resp_process )
		{
		local process = copy(is_orig ? c$orig_process : c$resp_process);
		name_user(process);
		return process;
		}

	if ( ! has_agent(is_orig ? id$orig_h : id$resp_h) )
		return Process();

	local found = is_orig ? find_waiting(id$orig_h, id$orig_p, id$resp_h,
	    id$resp_p, span_of(c)) : find_waiting(id$resp_h, id$resp_p,
	    id$orig_h, id$orig_p, span_of(c));
	return |found| > 0 ? process_in(found[0]$owner) : Process();
	}

function same_process(one: Process, other: Process): bool
	{
	if ( one?$entity_id && other?$entity_id )
		return one$entity_id == other$entity_id;

	return one$hid == other$hid && one$pid == other$pid;
	}

# Gives a connection's endpoint a claim, and thereby its process.
function attribute(c: connection, is_orig: bool, claim: Claim)
	{
	local process = process_in(claim$owner);
	local is_new = T;

	if ( is_orig )
		{
		is_new = ! c?$orig_process || ! same_process(c$orig_process, process);
		c$orig_claim = claim;
		c$orig_process = process;
		}
	else
		{
		is_new = ! c?$resp_process || ! same_process(c$resp_process, process);
		c$resp_claim = claim;
		c$resp_process = process;
		}

	if ( is_new )
		event connection_attributed(c, is_orig, process);
	}

function detach(c: connection, is_orig: bool)
	{
	if ( is_orig )
		{
		delete c$orig_claim;
		delete c$orig_process;
		}
	else
		{
		delete c$resp_claim;
		delete c$resp_process;
		}
	}

# Decides between all claims for an endpoint of a connection.
function decide(c: connection, is_orig: bool, local_h: addr, local_p: port,
    remote_h: addr, remote_p: port)
	{
	local there = waiting_claims(local_h, local_p, remote_h, remote_p);
	local has_claim = is_orig ? c?$orig_claim : c?$resp_claim;

	if ( has_claim )
		there += is_orig ? c$orig_claim : c$resp_claim;

	local best = nearest(there, counts_for, local_h, span_of(c));

	# The one that it has is the last.
	if ( has_claim && best == |there| - 1 )
		return;

	if ( best >= 0 )
		{
		remove_waiting(local_h, local_p, remote_h, remote_p, there[best]);
		attribute(c, is_orig, there[best]);
		}
	else
		detach(c, is_orig);

	if ( has_claim )
		add_waiting(local_h, local_p, remote_h, remote_p, there[-1]);
	}

# Zeek may have got the connection of a claim since it came. That keeps it.
function find_connection(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port)
	{
	local id = conn_id($orig_h=local_h, $orig_p=local_p, $resp_h=remote_h,
	    $resp_p=remote_p, $proto=protocol_number(local_h, local_p));

	if ( ! connection_exists(id) )
		return;

	local c = lookup_connection(id);
	decide(c, c$id$orig_h == local_h
	    && c$id$orig_p == local_p, local_h, local_p, remote_h, remote_p);
	}

function claims_expired(t: table[addr, port, addr, port] of Claim,
    local_h: addr, local_p: port, remote_h: addr, remote_p: port): interval
	{
	local longest = time_left(t[local_h, local_p, remote_h, remote_p]);

	if ( [local_h, local_p, remote_h, remote_p] !in more_claims
	    && longest > 0sec )
		return longest;

	if ( has_agent(local_h) )
		find_connection(local_h, local_p, remote_h, remote_p);

	local there = waiting_claims(local_h, local_p, remote_h, remote_p);
	longest = 0sec;

	for ( _, claim in there )
		{
		local left = time_left(claim);

		if ( left > longest )
			longest = left;

		if ( left <= 0sec )
			count_out(claim, local_p, remote_h, remote_p);
		}

	keep_waiting(local_h, local_p, remote_h, remote_p, remove_from(there));
	return longest;
	}

# The endpoints of a connection that is over whose process is unknown, though they have an agent's address.
type UnknownEnds: record {
	orig: bool &default=F;
	resp: bool &default=F;
	## The time of the connection, for claims that come later.
	span: Span;
	## When the connection was over, by its packets.
	ended: time;
};

# Looks for the process of an endpoint of a connection that is over, and keeps its claim if it may be needed again. Says whether
# an agent should know the process and none does so far.
function finish_endpoint(c: connection, is_orig: bool, has_agent_: bool,
    local_h: addr, local_p: port, remote_h: addr, remote_p: port): bool
	{
	if ( is_orig ? c?$orig_claim : c?$resp_claim )
		{
		local claim = is_orig ? c$orig_claim : c$resp_claim;
		name_user(is_orig ? c$orig_process : c$resp_process);

		# A flow that goes on becomes another connection after a pause.
		if ( ( ! claim?$until || claim$until + claim_lifetime > network_time() )
		    && ! zeek_is_terminating() )
			add_waiting(local_h, local_p, remote_h, remote_p, claim);

		return F;
		}

	if ( ! has_agent_ )
		return F;

	local found = find_waiting(local_h, local_p, remote_h, remote_p, span_of(c));

	if ( |found| > 0 )
		{
		attribute(c, is_orig, found[0]);
		return F;
		}

	return local_h in ids_by_address;
	}

# To be called once when a connection is over. Endpoints that stay unknown have to be counted.
function finish_connection(c: connection): UnknownEnds
	{
	local id = c$id;
	local has_orig = has_agent(id$orig_h);
	local has_resp = has_agent(id$resp_h);
	local ended = c$start_time + c$duration;
	local unknown = UnknownEnds($span=span_of(c), $ended=ended);

	if ( ! has_orig && ! has_resp && ! c?$orig_claim && ! c?$resp_claim )
		return unknown;

	unknown$orig = finish_endpoint(c, T, has_orig, id$orig_h, id$orig_p, id$resp_h,
	    id$resp_p);
	unknown$resp = finish_endpoint(c, F, has_resp, id$resp_h, id$resp_p, id$orig_h,
	    id$orig_p);
	recent_ends[id$orig_h, id$orig_p, id$resp_h, id$resp_p] = ended;
	return unknown;
	}

# Looks for a late claim of an endpoint. Says whether the process is still unknown.
function finish_late(c: connection, is_orig: bool, span: Span, local_h: addr,
    local_p: port, remote_h: addr, remote_p: port): bool
	{
	local found = find_waiting(local_h, local_p, remote_h, remote_p, span);

	if ( |found| == 0 )
		return T;

	attribute(c, is_orig, found[0]);
	return F;
	}

# To be called some time after ``finish_connection``: looks for claims that came since. Where the same ends have had another
# connection meanwhile, a claim could be of that.
function finish_unknown(c: connection, unknown: UnknownEnds)
	{
	local id = c$id;

	if ( connection_exists(id)
	    || ( [id$orig_h, id$orig_p, id$resp_h, id$resp_p] in recent_ends && recent_ends[id$orig_h, id$orig_p, id$resp_h, id$resp_p] != unknown$ended ) )
		return;

	if ( unknown$orig )
		unknown$orig = finish_late(c, T, unknown$span, id$orig_h, id$orig_p,
		    id$resp_h, id$resp_p);

	if ( unknown$resp )
		unknown$resp = finish_late(c, F, unknown$span, id$resp_h, id$resp_p,
		    id$orig_h, id$orig_p);
	}

function count_unknown(unknown: UnknownEnds)
	{
	if ( unknown$orig )
		++claim_counts["unattributed"];

	if ( unknown$resp )
		++claim_counts["unattributed"];
	}

global claims_counter = Telemetry::register_counter_family(
    Telemetry::MetricOpts($prefix="zeek", $name="agent_claims", $unit="",
    $help_text="Flows that agents reported, with their process",
    $label_names=vector("outcome")));

global unattributed_counter = Telemetry::register_counter_family(
    Telemetry::MetricOpts($prefix="zeek", $name="agent_unattributed_endpoints",
    $unit="", $help_text="Endpoints of connections at an agent's address without a known process"));

global waiting_gauge = Telemetry::register_gauge_family(Telemetry::MetricOpts(
    $prefix="zeek", $name="agent_waiting_claims", $unit="",
    $help_text="Flows that agents reported and that have no connection in Zeek"));

hook Telemetry::sync()
	{
	for ( _, outcome in vector("taken", "evicted", "refused") )
		Telemetry::counter_family_set(claims_counter, vector(outcome),
		    claim_counts[outcome]);

	Telemetry::counter_family_set(unattributed_counter, vector(),
	    claim_counts["unattributed"]);
	Telemetry::gauge_family_set(waiting_gauge, vector(), claims_total);
	}
