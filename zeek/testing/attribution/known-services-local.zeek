# @TEST-DOC: known_services.log names the listeners on loopback and in containers of a host whose internal traffic Zeek sees.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 127.0.0.1:1000 127.0.0.1:80 0 1' 'tcp 127.0.0.1:1001 127.0.0.2:80 0 1' 'tcp 127.0.0.1:1002 127.0.0.1:81 0 1' 'tcp 127.0.0.1:1005 127.0.0.1:84 0 1' 'tcp 172.17.0.1:1003 172.17.0.2:82 0 1' 'tcp 172.17.0.1:1004 172.17.0.2:83 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 0 400'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host port_num hid pid process exe < known_services.log | (read -r head; echo "$head"; sort) > services
# @TEST-EXEC: btest-diff services

redef Known::service_tracking = ALL_HOSTS;
redef ZeekAgent::agent_timeout = 1day;
redef ZeekAgent::local_agents = { "a" };

function listener(process: string, pid: count, at: count, address: string, is_own: bool &default=T): string
	{
	return fmt("[{\"pid\": %d, \"process\": \"%s\", \"exe\": \"/bin/%s\", \"protocol\": 6, \"port_\": %d, \"address\": \"%s\", \"own_netns\": %s}]",
	    pid, process, process, at, address, is_own ? "true" : "false");
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.2, 172.17.0.1));
	Test::join("B", set(10.0.0.3, 172.17.0.1));

	for ( agent_id in set("A", "B") )
		{
		event ZeekAgent::listener_rows(agent_id, F, listener("local-" + agent_id, 1, 80, "127.0.0.1"));
		event ZeekAgent::listener_rows(agent_id, F, listener("all-" + agent_id, 2, 80, "0.0.0.0"));
		event ZeekAgent::listener_rows(agent_id, F, listener("inside-" + agent_id, 5, 84, "127.0.0.1", F));
		event ZeekAgent::listener_rows(agent_id, F, listener("outside-" + agent_id, 3, 81, "10.0.0.2"));

		# Of a container by its address; and at all addresses of the host, which that of the container is not.
		event ZeekAgent::listener_rows(agent_id, F, listener("container-" + agent_id, 4, 82, "172.17.0.2", F));
		event ZeekAgent::listener_rows(agent_id, F, listener("all-" + agent_id, 2, 83, "0.0.0.0"));
		}
	}
