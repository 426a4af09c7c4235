##! Adds the process that listens on the service's port to ``known_services.log``. Not loaded by default.

@load protocols/conn/known-services
@load ./owners

module ZeekAgent;

export {
	## How often agents report listening ports.
	option listener_interval = 10sec;

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
};

type Listeners: vector of Listener;

const listener_sql = "SELECT pid, process, exe, protocol, port AS port_ FROM listening_ports WHERE pid IS NOT NULL";
global are_nodes_new = F;
global listeners: table[string, port] of Listener;

function take_listeners(agent_id: string, is_gone: bool, rows: string)
	{
	local parsed = from_json(rows, Listeners);

	if ( ! parsed$valid )
		return;

	for ( _, row in parsed$v as Listeners )
		{
		if ( ! row?$protocol || ! row?$port_ || ! row?$pid )
			next;

		local at = to_transport_port(row$port_, row$protocol);

		if ( ! is_gone )
			listeners[agent_id, at] = row;
		else if ( [agent_id, at] in listeners
		    && listeners[agent_id, at]$pid == row$pid )
			delete listeners[agent_id, at];
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
		query(Query($sql_stmt=listener_sql, $on_rows=hand_on_listeners), Host,
		    agent_id);
	}

event agent_connected(agent_id: string) &priority=-5
	{
	if ( is_owner() )
		ask_for_listeners(agent_id);
	}

event tell_new_nodes()
	{
	are_nodes_new = F;

	for ( agent_id in connected_agents() )
		ask_for_listeners(agent_id);
	}

event Cluster::node_up(name: string, id: string) &priority=-5
	{
	if ( ! is_owner() || are_nodes_new )
		return;

	are_nodes_new = T;
	schedule 1sec { tell_new_nodes() };
	}

hook Known::log_policy_services(rec: Known::ServicesInfo, id: Log::ID,
    filter: Log::Filter)
	{
	local agent_ids = agents_by_address(rec$host);

	# Nobody knows whose it is when several hosts have the address.
	if ( |agent_ids| != 1 )
		return;

	for ( agent_id in agent_ids )
		{
		if ( [agent_id, rec$port_num] !in listeners )
			return;

		local listener = listeners[agent_id, rec$port_num];
		rec$hid = agent_id;
		rec$pid = listener$pid;

		if ( listener?$process )
			rec$process = listener$process;

		if ( listener?$exe )
			rec$exe = listener$exe;
		}
	}

event zeek_init()
	{
	follow_options(query(Query($sql_stmt=listener_sql, $on_rows=hand_on_listeners,
	    $schedule_=listener_interval, $subscription=Differences,
	    $requires_tables=set("listening_ports"))),
	    "ZeekAgent::listener_interval");
	}
