# @TEST-DOC: What an agent costs does not depend on how many others there are; more than a maximum are not taken in.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 0 40'
# @TEST-EXEC: zeek --profile-scripts=profile -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out 2> zeek.err
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: sed 's/.*Zeek Agent: //' zeek.err > warnings
# @TEST-EXEC: btest-diff warnings
# @TEST-EXEC: awk -F '\t' '$1 == "ZeekAgent::send_query" { exit !($4 > 0 && $4 < 60 * 120) }' profile

redef ZeekAgent::max_agents = 120;

event shown()
	{
	print |ZeekAgent::connected_agents()|, "H1" in ZeekAgent::connected_agents();
	}

event Test::begin()
	{
	local n = 0;

	while ( ++n <= 200 )
		event ZeekAgentAPI::agent_hello_v1(ZeekAgent::Context($agent_id=fmt("H%d", n), $host_time=current_time(), $query_id="hello"),
		    ZeekAgentAPI::AgentHelloV1($agent_id=fmt("H%d", n), $instance_id="I", $features=set("batches"),
		    $tables=set("sockets_events", "users")));

	schedule 20sec { shown() };
	}
