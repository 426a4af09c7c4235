# @TEST-DOC: An agent's claims are bounded, and go when their time is over.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:80 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 0 900' 'tcp 10.0.0.1:1003 10.0.0.2:80 901 902' 'tcp 10.0.0.1:1000 10.0.0.2:80 903 904'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out

redef ZeekAgent::max_claims = 2;
redef ZeekAgent::agent_timeout = 1day;
redef table_expire_interval = 1sec;

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "one", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("A", "two", 12, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("A", "two", 12, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 1.0, "closed");
	Test::claim("A", "three", 13, 10.0.0.1, 1002/tcp, 10.0.0.2, 80/tcp, 0.0);
	schedule 901sec { Test::claim_later("A", "four", 14, 10.0.0.1, 1003/tcp, 10.0.0.2, 80/tcp, 901.0, "established",
	                                    "outbound", 0) };
	}

event zeek_done()
	{
	print ZeekAgent::claim_counts["taken"], ZeekAgent::claim_counts["refused"];
	}
