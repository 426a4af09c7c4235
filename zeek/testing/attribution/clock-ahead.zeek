# @TEST-DOC: A claim from the future, as from a host whose clock was set back, ends like others, and does not hold them up.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 440000000 440000001' 'udp 10.0.0.9:3 10.0.0.9:4 440000100 440000200' 'udp 10.0.0.9:5 10.0.0.9:6 440090000 440090100' 'udp 10.0.0.9:7 10.0.0.9:8 440090200 440090300'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > counts
# @TEST-EXEC: btest-diff counts

module ZeekAgent;

redef agent_timeout = 10day;
redef table_expire_interval = 1sec;

event shown(what: string)
	{
	local ended = 0;

	for ( _, of_agent in claims_by_agent )
		ended += |of_agent$ended|;

	print what, |claims|, ended;
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "future", 1, 10.0.0.1, 1/tcp, 10.0.0.2, 80/tcp, 2000000000.0, "closed");
	Test::claim("A", "open future", 2, 10.0.0.1, 2/tcp, 10.0.0.2, 80/tcp, 2000000000.0);

	local n = 100;

	while ( ++n <= 200 )
		Test::claim("A", "short", n, 10.0.0.1, count_to_port(n, tcp), 10.0.0.2, 80/tcp, 440000000.0, "closed");

	schedule 150sec { shown("open ones") };
	schedule 90150sec { shown("after a day") };
	}
