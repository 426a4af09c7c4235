# @TEST-DOC: A connection that two agents claim has no process, also when it was attributed before the second claim came.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 192.0.2.1:80 0 9' 'tcp 10.0.0.1:1001 192.0.2.1:80 0 9'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_hid orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.1));
	Test::claim("A", "of-a", 11, 10.0.0.1, 1000/tcp, 192.0.2.1, 80/tcp, 0.1);
	schedule 5sec { Test::claim_later("B", "of-b", 21, 10.0.0.1, 1000/tcp, 192.0.2.1, 80/tcp, 0.1, "established",
	                                  "outbound", 0) };
	Test::claim("A", "of-a", 12, 10.0.0.1, 1001/tcp, 192.0.2.1, 80/tcp, 0.1);
	}
