# @TEST-DOC: A claim is kept as long as its flow, translated or not, and no longer than Zeek can need it.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 192.0.2.1:80 0 1000' 'udp 10.0.0.1:1001 192.0.2.1:53 0 1' 'tcp 192.0.2.9:2000 10.0.0.1:8080 0 1000' 'tcp 10.0.0.1:1002 192.0.2.1:80 700 1000' 'udp 10.0.0.9:1 10.0.0.9:2 100 101' 'udp 10.0.0.9:1 10.0.0.9:2 200 201' 'udp 10.0.0.9:1 10.0.0.9:2 400 401' 'udp 10.0.0.9:1 10.0.0.9:2 600 601' 'udp 10.0.0.9:1 10.0.0.9:2 1001.5 1006' 'udp 10.0.0.9:1 10.0.0.9:2 1100 1101' 'udp 10.0.0.9:1 10.0.0.9:2 1200 1201'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p orig_process resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out

module ZeekAgent;

redef ZeekAgent::agent_timeout = 1day;
redef table_expire_interval = 1sec;
redef tcp_inactivity_timeout = 1hr;

function waiting(): double
	{
	for ( _, metric in Telemetry::collect_metrics("zeek", "agent_waiting_claims") )
		return metric$value;

	return -1.0;
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	# Container flows, of which the translation is not known, from and to the outside.
	Test::claim("A", "inside", 11, 172.17.0.2, 1000/tcp, 192.0.2.1, 80/tcp, 0.0);
	Test::claim("A", "nginx", 12, 172.17.0.2, 80/tcp, 192.0.2.9, 2000/tcp, 0.0, "established", "inbound");
	# One that begins long after its claim came.
	Test::claim("A", "idle", 13, 10.0.0.1, 1002/tcp, 192.0.2.1, 80/tcp, 0.0);
	# These are not needed any more: they have a connection, ended, or are never seen.
	Test::claim("A", "dig", 14, 10.0.0.1, 1001/udp, 192.0.2.1, 53/udp, 0.0);
	Test::claim("A", "ended", 15, 10.0.0.1, 1003/tcp, 192.0.2.1, 80/tcp, 0.0);
	Test::claim("A", "ended", 15, 10.0.0.1, 1003/tcp, 192.0.2.1, 80/tcp, 1.0, "closed");
	Test::claim("A", "unseen", 16, 10.0.0.1, 1004/udp, 192.0.2.1, 53/udp, 0.0);
	schedule 1001sec { Test::claim_later("A", "inside", 11, 172.17.0.2, 1000/tcp, 192.0.2.1, 80/tcp, 1000.0, "closed",
	                                     "outbound", 0) };
	schedule 1001sec { Test::claim_later("A", "nginx", 12, 172.17.0.2, 80/tcp, 192.0.2.9, 2000/tcp, 1000.0, "closed",
	                                     "inbound", 0) };
	schedule 1001sec { Test::claim_later("A", "idle", 13, 10.0.0.1, 1002/tcp, 192.0.2.1, 80/tcp, 1000.0, "closed",
	                                     "outbound", 0) };
	}

event new_connection(c: connection)
	{
	if ( c$id$orig_h == 10.0.0.9 || c$id$orig_p == 1002/tcp )
		print c$start_time - double_to_time(1700000000.0), waiting();
	}

event zeek_done()
	{
	print "end", waiting(), |owners|, |outbound_claims|, |inbound_claims|, |claims_by_agent|;
	}
