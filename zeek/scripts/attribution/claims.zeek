##! Claims of agents about the process at each endpoint of a flow, and their matching to connections.
##!
##! A claim is a process at an endpoint of a flow during some time. It counts only for addresses that its agent announced, so that
##! hosts in different networks with the same private addresses are not confused.

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

	## How long a claim is kept after its flow has ended, or after the agent is gone.
	option claim_lifetime = 5min;

	## How long a claim is kept if the end of its flow is not reported.
	option open_claim_lifetime = 1day;

	## Maximum number of claims kept per agent.
	option max_claims = 200000;

	## Maximum difference between the times of a claim and of a connection.
	option claim_slack = 2sec;

	## The process at one endpoint of a connection, if known at this time. Check for ``?$hid``.
	##
	## c: the connection.
	##
	## is_orig: whether to use the originator's endpoint.
	global process_of: function(c: connection, is_orig: bool): Process;

	## The process at an endpoint of a flow during a period. Check for ``?$hid``.
	global process_at: function(local_h: addr, local_p: port, remote_h: addr,
	    remote_p: port, from: time, to: time): Process;

	## Counts claims: ``taken``, and ``refused`` because an agent has too many.
	global claim_counts: table[string] of count = table() &default=0;
}

redef record connection += {
	## The originator's process.
	orig_process: Process &optional;
	## The responder's process.
	resp_process: Process &optional;
};

type Claim: record {
	process: Process;
	is_inbound: bool &default=F;
	## Whether its agent reports the translated addresses.
	is_far_side_known: bool &default=F;
	## The kernel's socket cookie.
	cookie: count &default=0;
	## When the flow began; unset if it already existed.
	since: time &optional;
	## When it ended; unset while it exists.
	until: time &optional;
};

type Claims: vector of Claim;

# By local and remote end.
global claims_expired: function(t: table[addr, port, addr, port] of Claims,
    local_h: addr, local_p: port, remote_h: addr, remote_p: port): interval;
global claims: table[addr, port, addr, port] of Claims
    &write_expire=claim_lifetime &expire_func=claims_expired;

# Flows whose local address is not the one on the wire: it is not known, or translated on the way, as for containers,
# and the agent does not know how.
# Translation of a source usually keeps its port; translation of a destination changes that, too.
global outbound_claims: table[port, addr, port] of Claims
    &write_expire=claim_lifetime;
global inbound_claims: table[addr, port] of Claims &write_expire=claim_lifetime;

# Ends that are used again and again keep the newest ones.
const claims_per_flow = 16;

global claims_by_agent: table[string] of count = table() &default=0;

# When a connection between two ends was over. Another one that follows soon may be logged before its own claims come,
# and must not get those of the one before.
global recent_ends: table[addr, port, addr, port] of time &create_expire=10sec;

global user_names: table[string, count] of string;

function is_current(claim: Claim): bool
	{
	if ( claim?$until )
		return claim$until + claim_lifetime > network_time();

	if ( claim$process$hid !in agents || ! claim?$since )
		return F;

	return claim$since + open_claim_lifetime > network_time();
	}

function claims_expired(t: table[addr, port, addr, port] of Claims,
    local_h: addr, local_p: port, remote_h: addr, remote_p: port): interval
	{
	local there = t[local_h, local_p, remote_h, remote_p];

	for ( _, claim in there )
		if ( is_current(claim) )
			return claim_lifetime;

	for ( _, gone in there )
		if ( claims_by_agent[gone$process$hid] > 0 )
			--claims_by_agent[gone$process$hid];

	return 0sec;
	}

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
	return a !in shared_subnets && has_address(agent_id, a);
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

function is_same_flow(known: Claim, claim: Claim): bool
	{
	if ( known$cookie != 0 && claim$cookie != 0 )
		return known$cookie == claim$cookie;

	return known$process$pid == claim$process$pid
	    && ( claim?$until || ! known?$until );
	}

# Brings what is known of a flow up to date; says whether it was known. A new socket at the same ends means that the one
# before has gone.
function update_known(there: Claims, claim: Claim): bool
	{
	for ( _, known in there )
		{
		if ( known$process$hid != claim$process$hid )
			next;

		if ( is_same_flow(known, claim) )
			{
			if ( claim?$until )
				known$until = claim$until;

			# The agent corrects the process of a flow that was accepted or read late.
			if ( known$cookie != 0 && known$cookie == claim$cookie )
				known$process = claim$process;

			return T;
			}

		if ( ! claim?$until && ! known?$until && claim?$since )
			known$until = claim$since;
		}

	return F;
	}

# Adds a claim to a flow's list, which keeps the newest ones.
function append_claim(there: Claims, claim: Claim)
	{
	if ( |there| == claims_per_flow )
		there[0:1] = Claims();
	else
		++claims_by_agent[claim$process$hid];

	there += claim;
	}

# Enters a claim, which is in the list of its own ends as well and brought up to date there, for other ends on the wire.
function add_translated(local_p: port, remote_h: addr, remote_p: port,
    claim: Claim)
	{
	if ( [local_p, remote_h, remote_p] !in outbound_claims )
		outbound_claims[local_p, remote_h, remote_p] = Claims();

	outbound_claims[local_p, remote_h, remote_p] += claim;

	if ( ! claim$is_inbound )
		return;

	if ( [remote_h, remote_p] !in inbound_claims )
		inbound_claims[remote_h, remote_p] = Claims();

	inbound_claims[remote_h, remote_p] += claim;
	}

# Takes a claim. Those of a flow that ended have their ``until`` set.
function add_claim(local_h: addr, local_p: port, remote_h: addr, remote_p: port,
    claim: Claim)
	{
	local agent_id = claim$process$hid;
	local there = Claims();

	if ( [local_h, local_p, remote_h, remote_p] in claims )
		there = claims[local_h, local_p, remote_h, remote_p];

	if ( ! update_known(there, claim) )
		{
		if ( claims_by_agent[agent_id] >= max_claims )
			{
			++claim_counts["refused"];
			return;
			}

		append_claim(there, claim);
		++claim_counts["taken"];

		if ( ! claim$is_far_side_known
		    && ( is_unspecified(local_h) || ! counts_for(agent_id, local_h) ) )
			add_translated(local_p, remote_h, remote_p, claim);
		}

	# Counts as written, so that it lives on.
	claims[local_h, local_p, remote_h, remote_p] = there;
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

# Of the claims for an address, the one that began nearest to a connection; none when several agents have one.
function nearest(found: Claims, has_local: function(agent_id: string, a: addr)
    : bool, local_h: addr, span: Span): Process
	{
	local best: Claim;
	local has_best = F;

	for ( _, claim in found )
		{
		if ( ! overlaps(claim, span) || ! has_local(claim$process$hid, local_h) )
			next;

		if ( has_best && best$process$hid != claim$process$hid )
			return Process();

		if ( ! has_best || distance(claim, span$start) < distance(best, span$start) )
			best = claim;

		has_best = T;
		}

	return has_best ? best$process : Process();
	}

function find_process(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, span: Span): Process
	{
	local process = Process();

	if ( [local_h, local_p, remote_h, remote_p] in claims )
		process = nearest(claims[local_h, local_p, remote_h, remote_p], counts_for,
		    local_h, span);

	if ( ! process?$hid && [local_p, remote_h, remote_p] in outbound_claims )
		process = nearest(outbound_claims[local_p, remote_h, remote_p],
		    is_outer_address, local_h, span);

	if ( ! process?$hid && [remote_h, remote_p] in inbound_claims )
		process = nearest(inbound_claims[remote_h, remote_p], is_outer_address,
		    local_h, span);

	if ( process?$hid
	    && process?$uid
	    && ! process?$user
	    && [process$hid, process$uid] in user_names )
		process$user = user_names[process$hid, process$uid];

	return process;
	}

function process_at(local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, from: time, to: time): Process
	{
	return find_process(local_h, local_p, remote_h, remote_p, Span($start=from,
	    $end=to));
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

# To be called when a connection is over.
function note_end(c: connection)
	{
	local id = c$id;

	if ( id$orig_h in ids_by_address
	    || id$resp_h in ids_by_address
	    || |local_agents| > 0 )
		recent_ends[id$orig_h, id$orig_p, id$resp_h, id$resp_p] = c$start_time +
		    c$duration;
	}

function process_of(c: connection, is_orig: bool): Process
	{
	local id = c$id;
	local span = span_of(c);
	local process: Process;

	if ( is_orig )
		process = find_process(id$orig_h, id$orig_p, id$resp_h, id$resp_p, span);
	else
		process = find_process(id$resp_h, id$resp_p, id$orig_h, id$orig_p, span);

	if ( process?$hid )
		return process;

	if ( is_orig )
		return c?$orig_process ? c$orig_process : process;

	return c?$resp_process ? c$resp_process : process;
	}
