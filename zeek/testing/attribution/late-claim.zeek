# @TEST-DOC: A claim that comes after its connection was logged does not go to the next connection of the same ends.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:80 2.5 9' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:80 2.5 9'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p duration orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: sort zeek.out > events
# @TEST-EXEC: btest-diff events

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	schedule 3sec { Test::claim_later("A", "late", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0, "established",
	                                  "outbound", 0) };
	schedule 3sec { Test::claim_later("A", "late", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 1.0, "closed",
	                                  "outbound", 0) };
	schedule 3.5sec { Test::claim_later("A", "second", 12, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 2.5, "established",
	                                    "outbound", 0) };
	# The second one of these has no claim at all.
	schedule 3sec { Test::claim_later("A", "late", 13, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 1.0, "closed", "outbound", 0) };
	}

event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
	{
	print c$id$orig_p, is_orig ? "orig" : "resp", process$process;
	}
