# @TEST-DOC: Both ends of a connection have their process, over TCP and UDP, IPv4 and IPv6; also when both are on one host.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'udp 10.0.0.1:1001 10.0.0.2:53 0 1' 'tcp [fd00::1]:1002 [fd00::2]:443 0 1' 'tcp 10.0.0.1:1003 10.0.0.1:8080 0 1' 'tcp 10.0.0.1:1004 192.0.2.1:80 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p id.resp_h id.resp_p proto orig_hid orig_pid orig_process resp_hid resp_pid resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: sort zeek.out > events
# @TEST-EXEC: btest-diff events

event Test::begin()
	{
	Test::join("A", set(10.0.0.1, [fd00::1]));
	Test::join("B", set(10.0.0.2, [fd00::2]));
	Test::claim("A", "curl", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("B", "httpd", 21, 10.0.0.2, 80/tcp, 10.0.0.1, 1000/tcp, 0.001, "established", "inbound");
	Test::claim("A", "dig", 12, 10.0.0.1, 1001/udp, 10.0.0.2, 53/udp, 0.0);
	Test::claim("B", "named", 22, 10.0.0.2, 53/udp, 10.0.0.1, 1001/udp, 0.001, "established", "inbound");
	Test::claim("A", "curl6", 13, [fd00::1], 1002/tcp, [fd00::2], 443/tcp, 0.0);
	Test::claim("B", "httpd6", 23, [fd00::2], 443/tcp, [fd00::1], 1002/tcp, 0.001, "established", "inbound");
	Test::claim("A", "client", 14, 10.0.0.1, 1003/tcp, 10.0.0.1, 8080/tcp, 0.0);
	Test::claim("A", "server", 15, 10.0.0.1, 8080/tcp, 10.0.0.1, 1003/tcp, 0.0, "established", "inbound");
	Test::claim("A", "wget", 16, 10.0.0.1, 1004/tcp, 192.0.2.1, 80/tcp, 0.0);
	}

event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
	{
	print c$id$orig_p, is_orig ? "orig" : "resp", process$host, process$process;
	}

event connection_state_remove(c: connection)
	{
	local orig = ZeekAgent::process_of(c, T);
	print c$id$orig_p, orig$exe, orig$entity_id, ZeekAgent::process_of(c, F)?$hid;
	}
