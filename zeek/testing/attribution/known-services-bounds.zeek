# @TEST-DOC: An agent that reports too many listening ports takes no more room, and the log says so once.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:1 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:2 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:3 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:4 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:5 0 1' 'tcp 10.0.0.1:1000 10.0.0.3:5 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 0 400'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host port_num hid pid < known_services.log | (read -r head; echo "$head"; sort) > services
# @TEST-EXEC: btest-diff services
# @TEST-EXEC: zeek-cut level message < reporter.log | grep -v attributed > warnings
# @TEST-EXEC: btest-diff warnings

redef Known::service_tracking = ALL_HOSTS;
redef ZeekAgent::agent_timeout = 1day;
redef ZeekAgent::max_listeners = 2;

function listener(at: count): string
	{
	return fmt("[{\"pid\": %d, \"protocol\": 6, \"port_\": %d, \"address\": \"0.0.0.0\"}]", at, at);
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.2));
	Test::join("B", set(10.0.0.3));

	for ( _, at in vector(1, 2, 3, 1, 4) )
		event ZeekAgent::listener_rows("A", F, listener(at));

	event ZeekAgent::listener_rows("A", T, listener(2));
	event ZeekAgent::listener_rows("A", F, listener(5));
	event ZeekAgent::listener_rows("B", F, listener(5));
	}
