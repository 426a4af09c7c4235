# @TEST-DOC: An agent's claims that wait for connections are bounded. The oldest ones whose flows have ended give way; that is reported once, and counted.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 0 40' 'tcp 10.0.0.1:1000 10.0.0.2:80 3 4' 'tcp 10.0.0.1:1001 10.0.0.2:80 3 4' 'tcp 10.0.0.1:1002 10.0.0.2:80 3 4' 'tcp 10.0.0.1:1003 10.0.0.2:80 3 4' 'tcp 10.0.0.1:1004 10.0.0.2:80 3 4' 'udp 10.0.0.9:1 10.0.0.9:2 900 901' 'tcp 10.0.0.1:1005 10.0.0.2:80 901 902' 'tcp 10.0.0.1:1000 10.0.0.2:80 903 904'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT 2> zeek.err | sort > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: sed 's/.*Zeek Agent: //' zeek.err > warnings
# @TEST-EXEC: btest-diff warnings

redef ZeekAgent::max_claims = 3;
redef ZeekAgent::max_claims_total = 5;
redef ZeekAgent::agent_timeout = 1day;
redef table_expire_interval = 1sec;

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.3));
	Test::claim("A", "open", 10, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 3.0);
	Test::claim("A", "evicted", 11, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 3.0);
	Test::claim("A", "evicted", 11, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 4.0, "closed");
	Test::claim("A", "kept", 12, 10.0.0.1, 1002/tcp, 10.0.0.2, 80/tcp, 4.0, "closed");
	Test::claim("A", "kept", 13, 10.0.0.1, 1003/tcp, 10.0.0.2, 80/tcp, 3.0);
	# As many as all may have: A has the most, and one that has ended.
	Test::claim("B", "other", 20, 10.0.0.3, 1000/tcp, 10.0.0.2, 80/tcp, 3.0);
	Test::claim("B", "other", 21, 10.0.0.3, 1001/tcp, 10.0.0.2, 80/tcp, 3.0);
	Test::claim("B", "other", 22, 10.0.0.3, 1002/tcp, 10.0.0.2, 80/tcp, 3.0);
	# No flow has ended now.
	Test::claim("A", "kept", 14, 10.0.0.1, 1002/tcp, 10.0.0.2, 80/tcp, 3.0);
	Test::claim("A", "refused", 15, 10.0.0.1, 1004/tcp, 10.0.0.2, 80/tcp, 3.0);
	# There is room again when that is over.
	Test::claim("B", "other", 20, 10.0.0.3, 1000/tcp, 10.0.0.2, 80/tcp, 4.0, "closed");
	schedule 901sec { Test::claim_later("A", "later", 16, 10.0.0.1, 1005/tcp, 10.0.0.2, 80/tcp, 901.0, "established",
	                                    "outbound", 0) };
	}

event zeek_done()
	{
	for ( _, outcome in vector("taken", "evicted", "refused", "unattributed") )
		print outcome, ZeekAgent::claim_counts[outcome];

	for ( _, metric in Telemetry::collect_metrics("zeek", "agent_*") )
		print metric$opts$name, metric$label_values, metric$value;
	}
