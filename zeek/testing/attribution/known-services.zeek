# @TEST-DOC: known_services.log names the process that listens at the address, where one host alone has it.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.3:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.4:80 0 1' 'tcp 10.0.0.1:1003 10.0.0.2:81 0 1' 'tcp 10.0.0.1:1004 10.0.0.2:82 0 1' 'tcp 10.0.0.1:1005 10.0.0.2:83 0 1' 'tcp 10.0.0.1:1006 10.0.0.2:84 0 1' 'tcp 10.0.0.1:1007 10.0.0.2:85 0 1' 'tcp 10.0.0.1:1008 10.0.0.2:86 0 1' 'tcp 10.0.0.1:1009 10.0.0.2:87 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 0 400'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host port_num hid pid process exe < known_services.log | (read -r head; echo "$head"; sort) > services
# @TEST-EXEC: btest-diff services

redef Known::service_tracking = ALL_HOSTS;
redef ZeekAgent::agent_timeout = 1day;

function listener(process: string, pid: count, at: count, address: string, is_own: bool &default=T): string
	{
	return fmt("[{\"pid\": %d, \"process\": \"%s\", \"exe\": \"/bin/%s\", \"protocol\": 6, \"port_\": %d, \"address\": \"%s\", \"own_netns\": %s}]",
	    pid, process, process, at, address, is_own ? "true" : "false");
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.2, 10.0.0.3, 10.0.0.4));
	Test::join("B", set(10.0.0.3));
	event ZeekAgent::listener_rows("B", F, listener("nginx", 7, 80, "0.0.0.0"));

	# One listener for each address of a host.
	event ZeekAgent::listener_rows("A", F, listener("nginx", 7, 80, "10.0.0.2"));
	event ZeekAgent::listener_rows("A", F, listener("apache", 8, 80, "10.0.0.4"));

	# One in a container and one on loopback at the same port, which come and go later.
	event ZeekAgent::listener_rows("A", F, listener("real", 10, 81, "0.0.0.0"));
	event ZeekAgent::listener_rows("A", F, listener("local", 11, 81, "127.0.0.1"));
	event ZeekAgent::listener_rows("A", F, listener("container", 12, 81, "0.0.0.0", F));
	event ZeekAgent::listener_rows("A", T, listener("local", 11, 81, "127.0.0.1"));
	event ZeekAgent::listener_rows("A", T, listener("container", 12, 81, "0.0.0.0", F));

	# Only in a container: unknown.
	event ZeekAgent::listener_rows("A", F, listener("container", 12, 82, "0.0.0.0", F));

	# IPv4 alone rather than both; several processes with one socket.
	event ZeekAgent::listener_rows("A", F, listener("both", 13, 83, "::"));
	event ZeekAgent::listener_rows("A", F, listener("child", 15, 83, "0.0.0.0"));
	event ZeekAgent::listener_rows("A", F, listener("parent", 14, 83, "0.0.0.0"));
	event ZeekAgent::listener_rows("A", F, listener("both", 13, 84, "::"));

	# Only in a container, but known by its connection, as the kernel passes them on.
	event ZeekAgent::listener_rows("A", F, listener("container", 12, 85, "0.0.0.0", F));
	Test::claim("A", "container", 12, 10.0.0.2, 85/tcp, 10.0.0.1, 1007/tcp, 0.0, "established", "inbound");

	# As a worker informs a proxy; of an agent that is not there any more.
	event ZeekAgent::service_process(10.0.0.2, 86/tcp, ZeekAgent::Process($hid="A", $pid=16, $process="seen"));
	event ZeekAgent::service_process(10.0.0.2, 87/tcp, ZeekAgent::Process($hid="Z", $pid=17, $process="gone"));
	}
