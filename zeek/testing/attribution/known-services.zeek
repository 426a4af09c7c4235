# @TEST-DOC: known_services.log says which process listens, where one host alone has the address.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.3:80 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 0 400'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host port_num hid pid process exe < known_services.log | (read -r head; echo "$head"; sort) > services
# @TEST-EXEC: btest-diff services

redef Known::service_tracking = ALL_HOSTS;
redef ZeekAgent::agent_timeout = 1day;

event Test::begin()
	{
	Test::join("A", set(10.0.0.2, 10.0.0.3));
	Test::join("B", set(10.0.0.3));
	local nginx = "{\"pid\": 7, \"process\": \"nginx\", \"exe\": \"/usr/sbin/nginx\", \"protocol\": 6, \"port_\": 80}";
	event ZeekAgent::listener_rows("A", F, fmt("[%s]", nginx));
	event ZeekAgent::listener_rows("B", F, fmt("[%s]", nginx));
	}
