##! Opens the port that agents connect to.
##!
##! Only one node listens: the manager of a cluster, or a standalone Zeek. Address and port are those of Zeek's own
##! WebSocket server by default, and so are the other settings. Where ZeekControl or the script
##! ``frameworks/cluster/websocket/server`` opens that port in the same process, both ask for the same and it is shared.

@load base/frameworks/cluster
@load base/utils/numbers

module ZeekAgent;

# What follows is decided while scripts are parsed, before reading_traces() knows. So this reads the arguments as Zeek does:
# an option's value may follow it as the next argument, short options may be joined, long ones abbreviated.
const short_options_with_value = /[BceEfGHiInOo0prsTtUwX]/;
const long_options_with_value = vector("capture-unprocessed", "debug",
    "event-trace", "exec", "filter", "iface", "load-seeds", "no-optimize-files",
    "no-optimize-funcs", "optimize", "optimize-files", "optimize-funcs",
    "prefix", "print-id", "re-level", "readfile", "rulefile", "save-seeds",
    "status-file", "tracefile", "writefile", "zeekygen");

# The short options of one argument up to the first that takes a value, and whether that value is the next argument.
type Option_: record {
	name: string &default="";
	is_value_next: bool &default=F;
};

function parse_short_options(letters: string): Option_ &is_used
	{
	local position = 0;

	for ( letter in letters )
		{
		++position;

		if ( letter == short_options_with_value )
			return Option_($name=letter, $is_value_next=position == |letters|);

		# Its value is optional and never the next argument.
		if ( letter == "j" )
			break;
		}

	return Option_();
	}

function parse_long_option(text: string): Option_ &is_used
	{
	local name = split_string1(text, /=/)[0];

	for ( _, known in long_options_with_value )
		if ( starts_with(known, name) )
			return Option_($name=known, $is_value_next=name == text);

	return Option_();
	}

# Whether command line arguments make Zeek read a trace.
function has_trace_argument(arguments: vector of string): bool &is_used
	{
	local is_value = F;

	for ( _, argument in arguments )
		{
		if ( is_value )
			{
			is_value = F;
			next;
			}

		if ( argument == "--" )
			return F;

		if ( argument == "-" || ! starts_with(argument, "-") )
			next;

		local parsed = starts_with(argument, "--") ? parse_long_option(argument[2:]) :
		    parse_short_options(argument[1:]);

		if ( parsed$name == "r" || parsed$name == "readfile" )
			return T;

		is_value = parsed$is_value_next;
		}

	return F;
	}

# A Zeek that reads a trace is alone: agents cannot come, and its ports may be those of one that runs.
const reads_trace = has_trace_argument(zeek_args());

# Whether this package chose the backend of a Zeek that runs alone, and where it relays events then: sockets in the working
# directory, which only the user that runs Zeek can connect to. ZeroMQ's own defaults are TCP ports that any local user,
# and no second Zeek, could use.
const has_chosen_backend = F &redef;
const event_socket = fmt(".zeek-agent-%d-%s", getpid(), unique_id(""));

@if ( ! reads_trace && ! Cluster::is_enabled() )

# Since 8.1 a Zeek that runs alone has no cluster backend, and takes events to nowhere without one.
@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
@if ( Cluster::backend == Cluster::CLUSTER_BACKEND_NONE )
@load frameworks/cluster/backend/zeromq
redef Cluster::Backend::ZeroMQ::run_proxy_thread = T;
redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = fmt("ipc://%s.xpub",
    event_socket);
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = fmt("ipc://%s.xpub",
    event_socket);
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = fmt("ipc://%s.xsub",
    event_socket);
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = fmt("ipc://%s.xsub",
    event_socket);
redef has_chosen_backend = T;
@endif
@endif

# With Broker it would end when it has nothing else to do than to wait for agents.
@ifdef ( Cluster::CLUSTER_BACKEND_BROKER )
@if ( Cluster::backend == Cluster::CLUSTER_BACKEND_BROKER )
redef exit_only_after_terminate = T;
@endif
@endif

@endif

# Bursts of many agents would have clients dropped that wait for their turn.
redef Cluster::default_websocket_max_event_queue_size = 512;
redef Cluster::default_websocket_ping_interval = 15sec;

export {
	## Whether to open a port for agents. Disable it if another port of this Zeek serves them.
	const listen = T &redef;

	## Address to listen on, unless the environment variable ``ZEEK_WEBSOCKET_LISTEN_ADDRESS`` is set.
	const listen_address = 127.0.0.1 &redef;

	## Port to listen on, unless the environment variable ``ZEEK_WEBSOCKET_LISTEN_PORT`` is set.
	const listen_port = 27759/tcp &redef;

	## Certificate and key for ``wss``, and whether agents must show a certificate. Plain by default.
	const listen_tls: Cluster::WebSocketTLSOptions = Cluster::WebSocketTLSOptions()
	    &redef;

	## Whether this node is the one that owns agents and queries.
	global is_owner: function(): bool;
}

function is_owner(): bool
	{
	return ! Cluster::is_enabled()
	    || Cluster::local_node_type() == Cluster::MANAGER;
	}

# Why no agent could be served here; empty when it can.
function why_not_listen(): string
	{
@ifdef ( Cluster::CLUSTER_BACKEND_NONE )
	if ( Cluster::backend == Cluster::CLUSTER_BACKEND_NONE )
		return "there is no cluster backend, Zeek would lose all events: load frameworks/cluster/backend/zeromq";
@endif

@ifdef ( Cluster::CLUSTER_BACKEND_ZEROMQ )
	if ( Cluster::is_enabled()
	    && Cluster::manager_is_logger
	    && Cluster::backend == Cluster::CLUSTER_BACKEND_ZEROMQ )
		return "with ZeroMQ a manager that is also the logger never answers clients: add a logger node to the cluster";
@endif

	return "";
	}

# Whether this is a Zeek that runs alone with ZeroMQ, whose events nobody takes around. Its scripts may come after these.
function lacks_proxy(): bool
	{
@ifdef ( Cluster::CLUSTER_BACKEND_ZEROMQ )
	if ( ! Cluster::is_enabled()
	    && Cluster::backend == Cluster::CLUSTER_BACKEND_ZEROMQ )
		{
		local runs_proxy = lookup_ID("Cluster::Backend::ZeroMQ::run_proxy_thread");
		return runs_proxy is bool && ! ( runs_proxy as bool );
		}
@endif

	return F;
	}

# Whether a variable has a port, with or without its protocol.
function is_port(text: string): bool
	{
	if ( text != /[0-9]{1,5}(\/tcp)?/ )
		return F;

	local number = to_count(sub(text, /\/tcp/, ""));
	return number > 0 && number <= 65535;
	}

function open_port()
	{
	local address = listen_address;
	local address_text = gsub(getenv("ZEEK_WEBSOCKET_LISTEN_ADDRESS"), /[\[\]]/,
	    "");
	local listen_at = listen_port;
	local port_text = getenv("ZEEK_WEBSOCKET_LISTEN_PORT");

	# Zeek would take anything else for all addresses, and for any port.
	if ( address_text != "" )
		{
		if ( ! is_valid_ip(address_text) )
			{
			Reporter::error(fmt("Zeek Agent: not listening for agents: ZEEK_WEBSOCKET_LISTEN_ADDRESS is no IP address: %s",
			    address_text));
			return;
			}

		address = to_addr(address_text);
		}

	if ( port_text != "" )
		{
		if ( ! is_port(port_text) )
			{
			Reporter::error(fmt("Zeek Agent: not listening for agents: ZEEK_WEBSOCKET_LISTEN_PORT is no port: %s",
			    port_text));
			return;
			}

		listen_at = count_to_port(extract_count(port_text), tcp);
		}

	local options = Cluster::WebSocketServerOptions($listen_addr=address,
	    $listen_port=listen_at, $tls_options=listen_tls);
	local url = fmt("%s://%s:%d", listen_tls?$cert_file ? "wss" : "ws",
	    addr_to_uri(address), listen_at);

	if ( Cluster::listen_websocket(options) )
		Reporter::info(fmt("Zeek Agent: listening for agents at %s", url));
	else
		Reporter::error(fmt("Zeek Agent: cannot listen for agents at %s: is another process using the address, or is ZeekAgent::listen_tls wrong? Set ZeekAgent::listen_port or ZEEK_WEBSOCKET_LISTEN_PORT to another port, or ZeekAgent::listen = F",
		    url));
	}

event open_port_soon()
	{
	open_port();
	}

# Should the arguments have been misread after all: a backend would keep Zeek from ending with its trace, and this is how
# its script is told not to start.
event zeek_init() &priority=20
	{
	if ( has_chosen_backend && reading_traces() )
		setenv("ZEEKCTL_DISABLE_LISTEN", "1");
	}

event zeek_init() &priority=-90
	{
	if ( ! listen || reading_traces() || ! is_owner() )
		return;

	# ZeekControl checks and prints configurations with these.
	if ( getenv("ZEEKCTL_DISABLE_LISTEN") != ""
	    || getenv("ZEEKCTL_CHECK_CONFIG") != "" )
		return;

	local obstacle = why_not_listen();
	if ( obstacle != "" )
		{
		Reporter::warning(fmt("Zeek Agent: not listening for agents: %s", obstacle));
		return;
		}

	if ( lacks_proxy() )
		Reporter::warning("Zeek Agent: Zeek can answer agents only while a ZeroMQ proxy runs: redef Cluster::Backend::ZeroMQ::run_proxy_thread = T");

	# An agent that came before this node's subscriptions have reached the cluster would not be heard.
	schedule 1sec { open_port_soon() };
	}

event zeek_done()
	{
	# ZeroMQ leaves them.
	if ( has_chosen_backend && ! reading_traces() )
		for ( _, end in vector("xpub", "xsub") )
			if ( file_size(fmt("%s.%s", event_socket, end)) >= 0 )
				unlink(fmt("%s.%s", event_socket, end));
	}
