##! Adds the process that listens on the service's port to ``known_services.log``. Not loaded by default.

@load protocols/conn/known-services
@load ./owners

module ZeekAgent;

export {
	## How often agents report listening ports.
	option listener_interval = 10sec;

	## Maximum number of listening ports that are remembered per agent.
	const max_listeners = 20000 &redef;

	## Forwards the process that accepted a connection from the workers to the proxies.
	global service_process: event(host: addr, at: port, process: Process);

	## Forwards listening ports to the nodes that log, as JSON.
	global listener_rows: event(agent_id: string, is_gone: bool, rows: string);
}

redef record Known::ServicesInfo += {
	## Id of the agent on the host.
	hid: string &log &optional;
	## Process id of the listening process.
	pid: count &log &optional;
	## Its name.
	process: string &log &optional;
	## Path of its executable.
	exe: string &log &optional;
};

type Listener: record {
	pid: count &optional;
	process: string &optional;
	exe: string &optional;
	protocol: count &optional;
	port_: count &optional;
	address: addr &optional;
	own_netns: bool &optional;
};

type Listeners: vector of Listener;

const listener_sql = "SELECT pid, process, exe, protocol, port AS port_, address, own_netns FROM listening_ports "
    + "WHERE pid IS NOT NULL";
global are_nodes_new = F;

type AddressPort: record {
	host: addr;
	at: port;
};

# By agent and port.
global listeners: table[string] of table[port] of Listeners;
global listener_numbers: table[string] of count;

# Agents whose listeners were refused, of which the log has a warning.
global agents_over_listeners: set[string];

# The processes that accepted connections, by address and port: of services for which no agent reports a listener at that
# address, such as those in containers.
global responders: table[addr, port] of Process &create_expire=10min;

function is_same_listener(one: Listener, other: Listener): bool
	{
	return one$pid == other$pid
	    && one$address == other$address
	    && one$own_netns == other$own_netns;
	}

function without(there: Listeners, gone: Listener): Listeners
	{
	local kept = Listeners();

	for ( _, listener in there )
		if ( ! is_same_listener(listener, gone) )
			kept += listener;

	return kept;
	}

function take_listener(agent_id: string, is_gone: bool, row: Listener)
	{
	local by_port = listeners[agent_id];
	local at = to_transport_port(row$port_, row$protocol);
	local there = at in by_port ? by_port[at] : Listeners();
	local kept = without(there, row);
	local number = listener_numbers[agent_id] - |there| + |kept|;

	if ( ! is_gone )
		{
		if ( number >= max_listeners )
			{
			if ( agent_id !in agents_over_listeners )
				Reporter::warning(fmt("Zeek Agent: agent %s reports more than %d listening ports (ZeekAgent::max_listeners): others are ignored",
				    agent_id, max_listeners));

			add agents_over_listeners[agent_id];
			return;
			}

		kept += row;
		++number;
		}

	listener_numbers[agent_id] = number;

	if ( |kept| > 0 )
		by_port[at] = kept;
	else
		delete by_port[at];
	}

function take_listeners(agent_id: string, is_gone: bool, rows: string)
	{
	local parsed = from_json(rows, Listeners);

	if ( ! parsed$valid )
		{
		Reporter::error(fmt("Zeek Agent: listening ports of agent %s are invalid%s",
		    agent_id, reason_of(parsed)));
		return;
		}

	if ( agent_id !in agents )
		return;

	if ( agent_id !in listeners )
		{
		listeners[agent_id] = table();
		listener_numbers[agent_id] = 0;
		}

	for ( _, row in parsed$v as Listeners )
		{
		if ( ! row?$protocol || ! row?$port_ || ! row?$pid || ! row?$address )
			next;

		if ( ! row?$own_netns )
			row$own_netns = T;

		take_listener(agent_id, is_gone, row);
		}
	}

event listener_rows(agent_id: string, is_gone: bool, rows: string)
	{
	take_listeners(agent_id, is_gone, rows);
	}

function hand_on_listeners(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	local is_gone = ctx?$change && ctx$change == Delete;

	if ( Cluster::is_enabled() )
		{
		Cluster::publish(Cluster::worker_topic, listener_rows, ctx$agent_id, is_gone,
		    rows as string);
		Cluster::publish(Cluster::proxy_topic, listener_rows, ctx$agent_id, is_gone,
		    rows as string);
		}
	else
		take_listeners(ctx$agent_id, is_gone, rows as string);
	}

# What was there before an agent or a node came.
function ask_for_listeners(agent_id: string)
	{
	if ( has_feature(agent_id, "batches") )
		query_anew("listeners", Query($sql_stmt=listener_sql,
		    $on_rows=hand_on_listeners), agent_id);
	}

event agent_connected(agent_id: string) &priority=-5
	{
	if ( is_owner() )
		for_agents(vector(agent_id), ask_for_listeners);
	}

event tell_new_nodes()
	{
	are_nodes_new = F;

	for_agents(all_agents(), ask_for_listeners);
	}

event Cluster::node_up(name: string, id: string) &priority=-5
	{
	if ( ! is_owner() || are_nodes_new )
		return;

	are_nodes_new = T;
	schedule 1sec { tell_new_nodes() };
	}

# The agents that may be on the host with an address: those that announced it, or if it is one that many hosts have, those
# whose internal traffic this Zeek sees.
function agents_at(a: addr): set[string]
	{
	local ids = agents_by_address(a);

	if ( |ids| > 0 && a !in shared_subnets )
		return ids;

	local local_ids: set[string] = set();

	for ( agent_id in connected_agents() )
		if ( is_local_agent(agent_id) )
			add local_ids[agent_id];

	return local_ids;
	}

# How well a listener fits a service's address; 0 if another one may be meant.
function fit(listener: Listener, agent_id: string, host: addr): count
	{
	# Each network namespace has its own loopback addresses, but no other address of the host's.
	local is_hosts = has_address(agent_id, host)
	    || host in 127.0.0.0/8
	    || host == [::1];

	if ( listener$address == host && listener$own_netns == is_hosts )
		return 3;

	if ( ! is_hosts || ! listener$own_netns )
		return 0;

	if ( listener$address == ( is_v4_addr(host) ? 0.0.0.0 : [::] ) )
		return 2;

	# It accepts IPv4 as well, unless its process has asked for IPv6 alone.
	return listener$address == [::] ? 1 : 0;
	}

# The process that listens at a service's port, by its agent; unset if there is none.
function listener_at(agent_id: string, host: addr, at: port): Process
	{
	local found = Process();
	local best = 0;

	if ( agent_id !in listeners || at !in listeners[agent_id] )
		return found;

	for ( _, listener in listeners[agent_id][at] )
		{
		local here = fit(listener, agent_id, host);

		# Of the processes that share a socket the first one, mostly the one that opened it.
		if ( here == 0
		    || here < best
		    || ( here == best && found$pid <= listener$pid ) )
			next;

		best = here;
		found = Process($hid=agent_id, $pid=listener$pid);

		if ( listener?$process )
			found$process = listener$process;

		if ( listener?$exe )
			found$exe = listener$exe;
		}

	return found;
	}

# The process of a service; unset if it is not known, or several agents may be meant.
function process_of_service(host: addr, at: port): Process
	{
	local found = Process();
	local agent_ids = agents_at(host);

	# Nobody knows whose it is when several hosts have the address.
	if ( |agent_ids| > 1 && host !in shared_subnets )
		return found;

	for ( agent_id in agent_ids )
		{
		local process = listener_at(agent_id, host, at);

		if ( ! process?$hid )
			next;

		if ( found?$hid )
			return Process();

		found = process;
		}

	if ( ! found?$hid && [host, at] in responders )
		return responders[host, at];

	return found;
	}

hook Known::log_policy_services(rec: Known::ServicesInfo, id: Log::ID,
    filter: Log::Filter)
	{
	local process = process_of_service(rec$host, rec$port_num);

	if ( ! process?$hid )
		return;

	rec$hid = process$hid;

	if ( process?$pid )
		rec$pid = process$pid;

	if ( process?$process )
		rec$process = process$process;

	if ( process?$exe )
		rec$exe = process$exe;
	}

event service_process(host: addr, at: port, process: Process)
	{
	if ( process?$hid && process$hid in agents )
		responders[host, at] = process;
	}

# Proxies log services, but see no connections.
event connection_attributed(c: connection, is_orig: bool, process: Process)
	{
	if ( is_orig || [c$id$resp_h, c$id$resp_p] in responders )
		return;

	local accepted = Process($hid=process$hid);

	if ( process?$pid )
		accepted$pid = process$pid;

	if ( process?$process )
		accepted$process = process$process;

	if ( process?$exe )
		accepted$exe = process$exe;

	responders[c$id$resp_h, c$id$resp_p] = accepted;

	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::proxy_topic, service_process, c$id$resp_h,
		    c$id$resp_p, accepted);
	}

hook agent_removed(agent_id: string)
	{
	delete listeners[agent_id];
	delete listener_numbers[agent_id];
	delete agents_over_listeners[agent_id];

	local gone: vector of AddressPort;

	for ( [host, at], process in responders )
		if ( process$hid == agent_id )
			gone += AddressPort($host=host, $at=at);

	for ( _, service in gone )
		delete responders[service$host, service$at];
	}

event zeek_init()
	{
	follow_options(query(Query($sql_stmt=listener_sql, $on_rows=hand_on_listeners,
	    $schedule_=listener_interval, $subscription=Differences,
	    $requires_tables=set("listening_ports"))),
	    "ZeekAgent::listener_interval");
	}
