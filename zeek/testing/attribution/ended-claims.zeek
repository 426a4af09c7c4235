# @TEST-DOC: What is kept of flows that have ended goes when its time is over, also if Zeek does not look at the table.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 30 31' 'udp 10.0.0.9:1 10.0.0.9:2 100 101' 'udp 10.0.0.9:1 10.0.0.9:2 200 201'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > sizes
# @TEST-EXEC: btest-diff sizes

module ZeekAgent;

redef agent_timeout = 1day;
redef table_expire_interval = 1hr;

event show()
	{
	print |claims|, |claims_by_agent["A"]$ended|, claims_total;
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "open", 1, 10.0.0.1, 1/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("A", "dig", 2, 10.0.0.1, 2/udp, 10.0.0.2, 53/udp, 1.0, "closed");
	local number = 0;

	while ( number < 100 )
		{
		++number;
		Test::claim("A", "curl", 10 + number, 10.0.0.1, count_to_port(1000 + number, tcp), 10.0.0.2, 80/tcp, 1.0, "closed");
		}

	schedule 1sec { show() };
	schedule 99.9sec { Test::claim_later("A", "late", 3, 10.0.0.1, 3/tcp, 10.0.0.2, 80/tcp, 99.9, "closed", "outbound", 0) };
	schedule 100.5sec { show() };
	}
