##! Connected agents: their hello messages, ``zeek-agent.log``, and lookups.
##!
##! In a cluster the manager communicates with agents and informs workers and proxies, so that lookups work there, too.

@load base/misc/version

@load ./types
@load ./api
@load ./listen
@load ./pace

module ZeekAgent;

export {
	redef enum Log::ID += { LOG };

	## The columns of ``zeek-agent.log``.
	type Info: record {
		## When Zeek received the message.
		ts: time &log;
		## ``join``, ``update``, ``reconnect``, ``shutdown`` or ``offline``.
		type_: string &log;
		## Id of the agent, which stays the same when it restarts.
		hid: string &log;
		## The host's name.
		hostname: string &log &optional;
		## The host's addresses.
		addresses: set[addr] &log &optional;
		## The agent's version as a number.
		version: int &log &optional;
		## How long the agent has been running.
		uptime: interval &log &optional;
		## The host's platform, such as ``Linux``.
		platform: string &log &optional;
		## Name of the operating system.
		os_name: string &log &optional;
		## Id of this run of the agent.
		instance: string &log &optional;
		## Features that the agent supports beyond version 1 of the API.
		features: set[string] &log &optional;
	};

	## Decides what is logged to ``zeek-agent.log``.
	global log_policy: Log::PolicyHook;

	## State of an agent.
	type Agent: record {
		## When its last hello was received.
		last_seen: time;
		## The same by the wall clock.
		last_heard: time;
		## That hello.
		hello: ZeekAgentAPI::AgentHelloV1;
		## Id of its connection.
		hello_id: string;
		## Offset of Zeek's clock from the agent's.
		clock_offset: interval &default=0sec;
		## Whether Zeek knows its connection, and so notices when that ends.
		is_connection_known: bool &default=F;
		## The gateway that it is behind; empty if it is connected directly.
		gateway: string &default="";
	};

	## How long an agent may be silent before it counts as offline. Longer than the agents' hello interval.
	option agent_timeout = 10min;

	## How long an agent whose connection has ended may take to reconnect before it counts as offline. Messages that
	## it sent just before the end, such as that it shuts down, arrive within this time as well.
	option reconnect_time = 1sec;

	## How long the agents behind a gateway whose connection has ended may take to appear at another one, or directly,
	## before they count as offline.
	option gateway_reconnect_time = 1min;

	## How often Zeek sends a hello to agents.
	option hello_interval = 60sec;

	## Clocks that differ by less are considered equal.
	option clock_tolerance = 0.5sec;

	## Maximum number of agents. Others are not taken in, which is reported.
	const max_agents = 20000 &redef;

	## Raised when an agent appears: a new one, or one that was offline or shut down.
	global agent_joined: event(agent_id: string,
	    hello: ZeekAgentAPI::AgentHelloV1);

	## Raised when an agent is gone, with the reason ``shutdown`` or ``offline``.
	global agent_left: event(agent_id: string, reason: string);

	## The id of the agent that a result came from.
	global host_id: function(ctx: Context): string;

	## The name of the host that a result came from, else one of its addresses, else ``<unknown>``.
	global hostname: function(ctx: Context): string;

	## The same for the id of an agent.
	global hostname_of: function(agent_id: string): string;

	## Change of a row: ``new``, ``gone``, or an empty string for a row of a snapshot.
	global change_type: function(ctx: Context): string;

	## The tables of an agent; empty if it is not connected.
	global supported_tables: function(hid: string): set[string];

	## The ids of all connected agents.
	global connected_agents: function(): set[string];

	## The ids of the agents whose host has an address; several for addresses that are used in several places.
	global agents_by_address: function(a: addr): set[string];

	## The gateway that an agent is behind; empty if it is connected directly, or through a gateway that does not say so.
	global gateway_of: function(agent_id: string): string;

	## Whether an agent supports a feature beyond version 1 of the API.
	global has_feature: function(agent_id: string, feature: string): bool;

	## Informs workers and proxies of an agent's hello.
	global agent_update: event(agent_id: string, agent: Agent);

	## Informs workers and proxies that an agent is gone.
	global agent_gone: event(agent_id: string);

	## Informs the manager of a connection at another node, and of the agents and gateways whose queries it gets.
	global client_added: event(node: string, endpoint_id: string, agent_ids: set[
	    string], gateways: set[string]);

	## Informs the manager that such a connection has ended.
	global client_lost: event(endpoint_id: string);

	## Id of this run of Zeek towards agents.
	global zeek_instance: string = "";
}

# Called on every node when an agent is gone, so that what is kept about it ends.
global agent_removed: hook(agent_id: string);

# Called at the node that owns agents after each hello, with whether its connection is new, and so has no queries of ours.
global agent_said_hello: hook(agent_id: string, is_new: bool);

# Raised after a hello of an agent that has no queries of ours.
global agent_connected: event(agent_id: string);

# Raised when a connected agent announces other addresses than before.
global addresses_changed: event(agent_id: string, before: set[addr]);

global agent_expired: function(t: table[string] of Agent, agent_id: string)
    : interval;
global agents: table[string] of Agent &write_expire=agent_timeout
    &expire_func=agent_expired;
global ids_by_address: table[addr] of set[string];

# Connections by the ids that Zeek gave them, and by the agents whose queries they get. This says nothing about who is at the
# other end, and a client may subscribe to another agent's queries: an agent is offline when the last one of them ends.
type Client: record {
	node: string;
	agent_ids: set[string];
	gateways: set[string];
};

global clients: table[string] of Client;
global clients_by_agent: table[string] of set[string];
global clients_by_gateway: table[string] of set[string];

# How a gateway names itself in the hellos of its agents, which it writes.
const via_feature = "via/";
const via_topic = "/zeek-agent/query/via/";

# Agents of whose hellos it was reported that something in them is not taken.
global bad_hellos: set[string] &create_expire=1day;
const max_bad_hellos = 1000;

# Whether it was reported that there are too many agents.
global was_crowd_reported = F;

# Written when the package is installed.
const version_file = @DIR + "/../version.dat";
global package_version = "";

function log_agent(agent_id: string, type_: string)
	{
	local hello = agents[agent_id]$hello;
	local info = Info($ts=network_time(), $type_=type_, $hid=agent_id,
	    $instance=hello$instance_id);

	if ( hello?$hostname )
		info$hostname = hello$hostname;

	if ( hello?$addresses )
		info$addresses = hello$addresses;

	if ( hello?$agent_version )
		info$version = hello$agent_version;

	if ( hello?$uptime )
		info$uptime = hello$uptime;

	if ( hello?$platform )
		info$platform = hello$platform;

	if ( hello?$os_name )
		info$os_name = hello$os_name;

	if ( hello?$features )
		info$features = hello$features;

	Log::write(LOG, info);
	}

function unindex_addresses(agent_id: string, agent: Agent)
	{
	if ( ! agent$hello?$addresses )
		return;

	for ( a in agent$hello$addresses )
		{
		if ( a !in ids_by_address )
			next;

		delete ids_by_address[a][agent_id];

		if ( |ids_by_address[a]| == 0 )
			delete ids_by_address[a];
		}
	}

function keep_agent(agent_id: string, agent: Agent)
	{
	if ( agent_id in agents )
		unindex_addresses(agent_id, agents[agent_id]);

	agents[agent_id] = agent;

	if ( ! agent$hello?$addresses )
		return;

	for ( a in agent$hello$addresses )
		{
		if ( a !in ids_by_address )
			ids_by_address[a] = set();

		add ids_by_address[a][agent_id];
		}
	}

# Tells the nodes that see connections, or log, of an agent.
function tell_nodes(agent_id: string, agent: Agent)
	{
	if ( ! Cluster::is_enabled() )
		return;

	Cluster::publish(Cluster::worker_topic, agent_update, agent_id, agent);
	Cluster::publish(Cluster::proxy_topic, agent_update, agent_id, agent);
	}

# Takes back what an agent that has gone left behind.
function forget_agent(agent_id: string, agent: Agent, reason: string)
	{
	unindex_addresses(agent_id, agent);
	hook agent_removed(agent_id);

	if ( ! is_owner() )
		return;

	log_agent(agent_id, reason);

	if ( Cluster::is_enabled() )
		{
		Cluster::publish(Cluster::worker_topic, agent_gone, agent_id);
		Cluster::publish(Cluster::proxy_topic, agent_gone, agent_id);
		}

	event agent_left(agent_id, reason);
	}

function agent_expired(t: table[string] of Agent, agent_id: string): interval
	{
	forget_agent(agent_id, t[agent_id], "offline");
	return 0sec;
	}

function host_id(ctx: Context): string
	{
	return ctx$agent_id;
	}

function hostname_of(agent_id: string): string
	{
	if ( agent_id !in agents )
		return "<unknown>";

	local hello = agents[agent_id]$hello;

	if ( hello?$hostname && hello$hostname != "" )
		return hello$hostname;

	if ( hello?$addresses )
		for ( a in hello$addresses )
			return cat(a);

	return "<unknown>";
	}

function hostname(ctx: Context): string
	{
	return hostname_of(ctx$agent_id);
	}

function change_type(ctx: Context): string
	{
	if ( ! ctx?$change )
		return "";

	return ctx$change == Add ? "new" : "gone";
	}

function supported_tables(hid: string): set[string]
	{
	if ( hid in agents && agents[hid]$hello?$tables )
		return copy(agents[hid]$hello$tables);

	return set();
	}

function connected_agents(): set[string]
	{
	local ids: set[string] = set();

	for ( id in agents )
		add ids[id];

	return ids;
	}

function agents_by_address(a: addr): set[string]
	{
	return a in ids_by_address ? copy(ids_by_address[a]) : set();
	}

function has_feature(agent_id: string, feature: string): bool
	{
	if ( agent_id !in agents || ! agents[agent_id]$hello?$features )
		return F;

	return feature in agents[agent_id]$hello$features;
	}

function gateway_of(agent_id: string): string
	{
	return agent_id in agents ? agents[agent_id]$gateway : "";
	}

# The beginning of the topics to an agent, which its gateway or the agent itself subscribes to.
function topics_of(agent_id: string): string
	{
	local gateway = gateway_of(agent_id);
	return gateway == "" ? "/zeek-agent/query/" : via_topic + gateway + "/";
	}

function host_topic(agent_id: string): string
	{
	return fmt("%shost/%s", topics_of(agent_id), agent_id);
	}

function group_topic(agent_id: string, group: string): string
	{
	return fmt("%sgroup/%s/%s", topics_of(agent_id), agent_id, group);
	}

function report_bad_hello(agent_id: string, fault: string)
	{
	if ( agent_id in bad_hellos || |bad_hellos| >= max_bad_hellos )
		return;

	add bad_hellos[agent_id];
	Reporter::warning(fmt("Zeek Agent: hello of agent %s %s", agent_id, fault));
	}

# Whether topics can have this id in them and still be those of one agent.
function is_agent_id(agent_id: string): bool
	{
	return |agent_id| > 0
	    && |agent_id| <= 256
	    && "/" !in agent_id
	    && to_lower(agent_id) !in set("all", "linux", "darwin", "windows");
	}

function is_gateway_name(name: string): bool
	{
	return |name| <= 64 && name == /[A-Za-z0-9_-]+/;
	}

# The gateway in a hello; empty if there is none.
function gateway_in(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1): string
	{
	local gateway = "";

	if ( ! hello?$features )
		return gateway;

	for ( feature in hello$features )
		{
		if ( ! starts_with(feature, via_feature) )
			next;

		local name = feature[|via_feature| :];

		if ( gateway != "" || ! is_gateway_name(name) )
			{
			report_bad_hello(agent_id, "has several gateways, or a name that no gateway can have: it is taken as one without");
			return "";
			}

		gateway = name;
		}

	return gateway;
	}

function zeek_hello(): ZeekAgentAPI::ZeekHelloV1
	{
	return ZeekAgentAPI::ZeekHelloV1($version_string=zeek_version(),
	    $version_number=Version::number, $package_version=package_version);
	}

function say_hello(topic: string)
	{
	count_message();
	Cluster::publish(topic, ZeekAgentAPI::zeek_hello_v1, zeek_instance,
	    zeek_hello());
	}

# Makes one record of a hello, whatever the agent's version; false when it is none of them. What a newer agent sends
# would pass as an older record, too, since surplus elements are ignored.
function read_hello(columns: any, agent: Agent): bool
	{
	if ( columns is ZeekAgentAPI::AgentHelloV1 )
		agent$hello = columns as ZeekAgentAPI::AgentHelloV1;
	else if ( columns is ZeekAgentAPI::AgentHelloFeatures )
		agent$hello = columns as ZeekAgentAPI::AgentHelloFeatures;
	else if ( columns is ZeekAgentAPI::AgentHelloBroker )
		agent$hello = columns as ZeekAgentAPI::AgentHelloBroker;
	else if ( columns is ZeekAgentAPI::AgentHelloPlain )
		agent$hello = columns as ZeekAgentAPI::AgentHelloPlain;
	else
		return F;

	return T;
	}

event ZeekAgentAPI::agent_hello_v1(ctx: Context, columns: any)
	{
	if ( ! is_agent_id(ctx$agent_id) )
		{
		report_bad_hello(ctx$agent_id, "is not taken: no agent can have this id");
		return;
		}

	if ( ctx$agent_id !in agents && |agents| >= max_agents )
		{
		if ( ! was_crowd_reported )
			Reporter::warning(fmt("Zeek Agent: agent %s is not taken in: there are %d already (ZeekAgent::max_agents)",
			    ctx$agent_id, max_agents));

		was_crowd_reported = T;
		return;
		}

	local agent = Agent($last_seen=network_time(), $last_heard=current_time(),
	    $hello=ZeekAgentAPI::AgentHelloV1($agent_id="", $instance_id=""),
	    $hello_id=ctx?$query_id ? ctx$query_id : "");

	if ( ! read_hello(columns, agent) )
		{
		Reporter::warning(fmt(
		    "Zeek Agent: hello of agent %s is of an unknown version",
		    ctx$agent_id));
		return;
		}

	local offset = current_time() - ctx$host_time;

	if ( offset > clock_tolerance || offset < -clock_tolerance )
		agent$clock_offset = offset;

	agent$gateway = gateway_in(ctx$agent_id, agent$hello);
	agent$is_connection_known = agent$gateway == "" && ctx$agent_id in
	    clients_by_agent;

	local is_known = ctx$agent_id in agents;
	local is_same_connection = is_known
	    && agents[ctx$agent_id]$hello_id == agent$hello_id
	    && agents[ctx$agent_id]$gateway == agent$gateway;
	local addresses_before: set[addr] = set();
	local addresses: set[addr] = set();

	if ( is_known && agents[ctx$agent_id]$hello?$addresses )
		addresses_before = agents[ctx$agent_id]$hello$addresses;

	if ( agent$hello?$addresses )
		addresses = agent$hello$addresses;

	keep_agent(ctx$agent_id, agent);

	tell_nodes(ctx$agent_id, agent);

	log_agent(ctx$agent_id, is_same_connection ? "update" : is_known ? "reconnect" :
	    "join");

	hook agent_said_hello(ctx$agent_id, ! is_same_connection);

	if ( ! is_same_connection )
		{
		say_hello(host_topic(ctx$agent_id));
		event agent_connected(ctx$agent_id);
		}
	else if ( addresses != addresses_before )
		event addresses_changed(ctx$agent_id, addresses_before);

	if ( ! is_known )
		event agent_joined(ctx$agent_id, agent$hello);
	}

event ZeekAgentAPI::agent_shutdown_v1(ctx: Context)
	{
	if ( ctx$agent_id !in agents )
		return;

	forget_agent(ctx$agent_id, agents[ctx$agent_id], "shutdown");
	delete agents[ctx$agent_id];
	}

event agent_update(agent_id: string, agent: Agent)
	{
	keep_agent(agent_id, agent);
	}

event agent_gone(agent_id: string)
	{
	if ( agent_id !in agents )
		return;

	unindex_addresses(agent_id, agents[agent_id]);
	delete agents[agent_id];
	hook agent_removed(agent_id);
	}

# An agent's first hello gets lost when it comes before this node's subscriptions are known everywhere, as it does where
# something else opens the port early. Our agents answer a Zeek that is new to them with another one.
event greet(agent_id: string, connected: time)
	{
	if ( agent_id !in agents || agents[agent_id]$last_heard < connected )
		say_hello(host_topic(agent_id));
	}

event greet_gateway(gateway: string)
	{
	say_hello(fmt("%s%s/group/all", via_topic, gateway));
	}

event client_added(node: string, endpoint_id: string, agent_ids: set[string],
    gateways: set[string])
	{
	if ( ! is_owner() )
		return;

	clients[endpoint_id] = Client($node=node, $agent_ids=agent_ids,
	    $gateways=gateways);

	for ( gateway in gateways )
		{
		if ( gateway !in clients_by_gateway )
			clients_by_gateway[gateway] = set();

		add clients_by_gateway[gateway][endpoint_id];
		# It has to know what is supported before it passes on hellos. Its subscriptions may not be known everywhere yet.
		event greet_gateway(gateway);
		schedule 0.5sec { greet_gateway(gateway) };
		schedule 3sec { greet_gateway(gateway) };
		}

	for ( agent_id in agent_ids )
		{
		if ( agent_id !in clients_by_agent )
			clients_by_agent[agent_id] = set();

		add clients_by_agent[agent_id][endpoint_id];
		schedule 2sec { greet(agent_id, current_time()) };
		}
	}

function lose_agent(agent_id: string)
	{
	forget_agent(agent_id, agents[agent_id], "offline");
	delete agents[agent_id];
	}

# Raised some time after an agent's last connection has ended.
event check_connection(agent_id: string)
	{
	# A Zeek that ends closes its connections itself.
	if ( zeek_is_terminating()
	    || agent_id in clients_by_agent
	    || agent_id !in agents
	    || ! agents[agent_id]$is_connection_known )
		return;

	lose_agent(agent_id);
	}

# Raised some time after an agent behind a gateway has gone: it is offline unless it has come back, or another way.
event check_behind(agent_id: string, gateway: string, left: time)
	{
	if ( zeek_is_terminating()
	    || agent_id !in agents
	    || agents[agent_id]$gateway != gateway
	    || agents[agent_id]$last_heard >= left )
		return;

	lose_agent(agent_id);
	}

event ZeekAgentAPI::agent_left_v1(ctx: Context, gateway: string)
	{
	if ( gateway != "" && gateway_of(ctx$agent_id) == gateway )
		schedule reconnect_time { check_behind(ctx$agent_id, gateway, current_time()) };
	}

# Raised some time after a gateway's last connection has ended.
event check_gateway(gateway: string, lost: time)
	{
	if ( zeek_is_terminating() )
		return;

	local behind: vector of string;

	for ( agent_id, agent in agents )
		if ( agent$gateway == gateway && agent$last_heard < lost )
			behind += agent_id;

	for_agents(behind, function[gateway, lost](behind_id: string)
		{
		count_message();
		event check_behind(behind_id, gateway, lost);
		});
	}

function forget_client(endpoint_id: string)
	{
	if ( endpoint_id !in clients )
		return;

	for ( agent_id in clients[endpoint_id]$agent_ids )
		{
		delete clients_by_agent[agent_id][endpoint_id];

		if ( |clients_by_agent[agent_id]| > 0 )
			next;

		delete clients_by_agent[agent_id];
		schedule reconnect_time { check_connection(agent_id) };
		}

	for ( gateway in clients[endpoint_id]$gateways )
		{
		delete clients_by_gateway[gateway][endpoint_id];

		if ( |clients_by_gateway[gateway]| > 0 )
			next;

		delete clients_by_gateway[gateway];
		schedule gateway_reconnect_time { check_gateway(gateway, current_time()) };
		}

	delete clients[endpoint_id];
	}

event client_lost(endpoint_id: string)
	{
	if ( is_owner() )
		forget_client(endpoint_id);
	}

event Cluster::websocket_client_added(endpoint: Cluster::EndpointInfo,
    subscriptions: string_vec)
	{
	local agent_ids: set[string] = set();
	local gateways: set[string] = set();

	for ( _, topic in subscriptions )
		{
		if ( starts_with(topic, "/zeek-agent/query/host/") )
			add agent_ids[sub(topic, /^\/zeek-agent\/query\/host\//, "")];

		if ( starts_with(topic, via_topic)
		    && ends_with(topic, "/")
		    && is_gateway_name(topic[|via_topic| : -1]) )
			add gateways[topic[|via_topic| : -1]];
		}

	# That of all agents.
	delete agent_ids[""];

	if ( |agent_ids| == 0 && |gateways| == 0 )
		return;

	if ( is_owner() )
		event client_added(Cluster::node, endpoint$id, agent_ids, gateways);
	else
		Cluster::publish(Cluster::manager_topic, client_added, Cluster::node,
		    endpoint$id, agent_ids, gateways);
	}

@ifdef ( Cluster::websocket_client_lost )
event Cluster::websocket_client_lost(endpoint: Cluster::EndpointInfo,
    code: count, reason: string)
	{
	if ( is_owner() )
		forget_client(endpoint$id);
	else
		Cluster::publish(Cluster::manager_topic, client_lost, endpoint$id);
	}
@endif

event Cluster::node_down(name: string, id: string)
	{
	local lost: vector of string;

	for ( endpoint_id, client in clients )
		if ( client$node == name )
			lost += endpoint_id;

	for ( _, lost_id in lost )
		forget_client(lost_id);
	}

event say_hello_to_all()
	{
	say_hello("/zeek-agent/query/group/all");
	schedule hello_interval { say_hello_to_all() };
	}

event Cluster::node_up(name: string, id: string)
	{
	if ( ! is_owner() || name !in Cluster::nodes )
		return;

	for ( agent_id, agent in agents )
		Cluster::publish(Cluster::node_topic(name), agent_update, agent_id, agent);
	}

type VersionLine: record {
	line: string;
};

event version_read(description: Input::EventDescription, type_: Input::Event,
    line: string)
	{
	if ( line != "" )
		package_version = line;
	}

event zeek_init() &priority=100
	{
	zeek_instance = unique_id("zeek_");
	Log::create_stream(LOG, Log::Stream($columns=Info, $path="zeek-agent",
	    $policy=log_policy));

	if ( is_owner() && file_size(version_file) > 0 )
		Input::add_event(Input::EventDescription($source=version_file,
		    $reader=Input::READER_RAW, $mode=Input::MANUAL,
		    $name="zeek-agent-version", $fields=VersionLine,
		    $ev=version_read, $want_record=F));
	}

# For options that would have Zeek do nothing else, or nothing at all, with 0.
function refuse_zero(option_name: string, value: interval): interval
	{
	if ( value > 0sec )
		return value;

	Reporter::error(fmt(
	    "Zeek Agent: %s must be more than 0 seconds, and keeps its value",
	    option_name));
	return lookup_ID(option_name) as interval;
	}

event zeek_init() &priority=-10
	{
	Option::set_change_handler("ZeekAgent::hello_interval", refuse_zero);
	Option::set_change_handler("ZeekAgent::agent_timeout", refuse_zero);

	if ( ! is_owner() || reading_traces() )
		return;

	Cluster::subscribe("/zeek-agent/response/all");
	Cluster::subscribe(fmt("/zeek-agent/response/%s/", zeek_instance));
	schedule 2sec { say_hello_to_all() };
	}

event zeek_done()
	{
	# Agents forget a Zeek that falls silent, should this get lost.
	if ( is_owner() && ! reading_traces() )
		Cluster::publish("/zeek-agent/query/group/all",
		    ZeekAgentAPI::zeek_shutdown_v1, zeek_instance);
	}
