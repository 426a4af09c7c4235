# @TEST-DOC: A claim whose connection is there has room when none is left for others.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 2' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 2'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out

redef ZeekAgent::max_claims = 1;

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "unseen", 11, 10.0.0.1, 2000/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("A", "refused", 12, 10.0.0.1, 2001/tcp, 10.0.0.2, 80/tcp, 0.0);
	schedule 1sec { Test::claim_later("A", "failed", 13, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.5, "failed", "outbound",
	                                  0) };
	schedule 1sec { Test::claim_later("A", "established", 14, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 0.5, "established",
	                                  "outbound", 0) };
	}

event zeek_done()
	{
	print ZeekAgent::claim_counts["taken"], ZeekAgent::claim_counts["refused"];
	}
