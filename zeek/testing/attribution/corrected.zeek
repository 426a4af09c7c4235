# @TEST-DOC: The process that accepts a connection late replaces the listener that stood in, also at a connection that is there.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.2:1000 10.0.0.1:80 0 9' 'tcp 10.0.0.2:1001 10.0.0.1:80 0 9' 'tcp 10.0.0.2:1002 10.0.0.1:80 10 11'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p resp_process resp_pid < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: sort zeek.out > events
# @TEST-EXEC: btest-diff events

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "parent", 11, 10.0.0.1, 80/tcp, 10.0.0.2, 1000/tcp, 0.0, "established", "inbound", 1);
	Test::claim("A", "child", 12, 10.0.0.1, 80/tcp, 10.0.0.2, 1000/tcp, 0.0, "established", "inbound", 1);
	Test::claim("A", "parent", 11, 10.0.0.1, 80/tcp, 10.0.0.2, 1001/tcp, 0.0, "established", "inbound", 2);
	schedule 5sec { Test::claim_later("A", "child", 12, 10.0.0.1, 80/tcp, 10.0.0.2, 1001/tcp, 0.0, "established",
	                                  "inbound", 2) };
	Test::claim("A", "parent", 11, 10.0.0.1, 80/tcp, 10.0.0.2, 1002/tcp, 10.0, "established", "inbound", 3);
	}

event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
	{
	print c$id$orig_p, is_orig ? "orig" : "resp", process$process;
	}
