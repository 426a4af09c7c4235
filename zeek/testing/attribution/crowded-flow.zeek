# @TEST-DOC: Any number of sockets with the same ends leave a bounded number of claims, also where the ends on the wire are not known.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 192.0.2.1:80 50 51' 'udp 10.0.0.9:1 10.0.0.9:2 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_pid < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

module ZeekAgent;

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	local number = 0;

	while ( number < 1000 )
		{
		++number;
		Test::claim("A", "inside", number, 172.17.0.2, 1000/tcp, 192.0.2.1, 80/tcp, 50.0, "established", "inbound");
		Test::claim("A", "host", number, 10.0.0.1, 2000/tcp, 192.0.2.1, 80/tcp, 50.0, "closed");
		}
	}

event connection_state_remove(c: connection) &priority=10
	{
	if ( c$id$orig_p != 1000/tcp )
		return;

	print |claims|, claims_total, |outbound_claims[1000/tcp, 192.0.2.1, 80/tcp]|, |inbound_claims[192.0.2.1, 80/tcp]|;
	}
