# @TEST-DOC: Rows that cannot be parsed are reported with the reason; names of users and command lines are bounded, and the former taken only of agents that are there.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 0 40'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT > zeek.out 2> zeek.err
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: sed 's/.*Zeek Agent: //' zeek.err | sort > messages
# @TEST-EXEC: btest-diff messages

module ZeekAgent;

redef max_users = 3;
redef max_cmdline = 10;
redef agent_timeout = 1day;

event shown()
	{
	for ( _, owner in owners )
		print owner$cmdline;

	print |user_names|;
	print [ "A", 1 ] in user_names, [ "A", 5 ] in user_names, [ "B", 1 ] in user_names, [ "unknown", 1 ] in user_names;
	}

function user(uid: string): string
	{
	return fmt("[{\"uid\": \"%s\", \"name\": \"name of %s\"}]", uid, uid);
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.2));
	event claim_rows("A", network_time(), "[{\"pid\": -1}]");
	event claim_rows("A", network_time(), "[{\"pid\": 7, \"protocol\": 6, \"local_addr\": \"10.0.0.1\", \"local_port\": 1, \"remote_addr\": \"10.0.0.2\", \"remote_port\": 80, \"cmdline\": \"0123456789abcdef\"}]");
	event user_rows("A", F, "[{\"uid\": 1}]");
	event listener_rows("A", F, "no JSON");

	# None has this id.
	event user_rows("A", F, user("99999999999999999999999"));

	for ( _, uid in vector("1", "2", "3", "4") )
		event user_rows("A", F, user(uid));

	# One makes room for another.
	event user_rows("A", T, user("2"));
	event user_rows("A", F, user("5"));
	event user_rows("A", F, user("6"));
	event user_rows("B", F, user("1"));
	event user_rows("unknown", F, user("1"));
	schedule 30sec { shown() };
	}
