# @TEST-DOC: An agent is addressed through the gateway in its newest hello, or directly; names that lead elsewhere are not taken.
#
# @TEST-EXEC: seq 0 0.25 25 | sed 's/.*/udp 10.0.0.9:1 10.0.0.9:2 & 0/' | tr '\n' '\0' | xargs -0 ${SCRIPTS}/flows flows.pcap
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > topics 2> zeek.err
# @TEST-EXEC: btest-diff topics
# @TEST-EXEC: sed 's/.*Zeek Agent: //' zeek.err > warnings
# @TEST-EXEC: btest-diff warnings
# @TEST-EXEC: zeek-cut type_ hid < zeek-agent.log > agents
# @TEST-EXEC: btest-diff agents

module ZeekAgent;

redef agent_timeout = 1day;

function hello(agent_id: string, connection: string, features: set[string])
	{
	event ZeekAgentAPI::agent_hello_v1(Context($agent_id=agent_id, $host_time=current_time(), $query_id=connection),
	    ZeekAgentAPI::AgentHelloV1($agent_id=agent_id, $instance_id="I", $features=features));
	}

event later_hello(agent_id: string, connection: string, features: set[string])
	{
	hello(agent_id, connection, features);
	}

event left(agent_id: string, gateway: string)
	{
	event ZeekAgentAPI::agent_left_v1(Context($agent_id=agent_id, $host_time=current_time()), gateway);
	}

event show(what: string, agent_id: string)
	{
	print what, agent_id in agents, gateway_of(agent_id), host_topic(agent_id), group_topic(agent_id, "linux");
	}

event agent_left(agent_id: string, reason: string)
	{
	print "left", agent_id, reason;
	}

event Test::begin()
	{
	hello("direct", "1", set("batches"));
	hello("old", "1", set());
	hello("moves", "1", set("batches", "via/gw-1"));
	hello("stays", "1", set("batches", "via/gw_1"));
	hello("goes", "1", set("batches", "via/GW1"));
	hello("returns", "1", set("batches", "via/gw1"));
	hello("climbs", "1", set("via/../../group/all"));
	hello("empty", "1", set("via/"));
	hello("blank", "1", set("via/gw 1"));
	hello("slash", "1", set("via/gw1/"));
	hello("long", "1", set("via/" + string_fill(65, "g")));
	hello("two", "1", set("via/gw1", "via/gw2"));
	hello("H1/linux", "1", set("via/gw1"));
	hello("ALL", "1", set());
	hello("", "1", set("via/gw1"));

	local after = 1sec;

	for ( _, id in vector("direct", "old", "moves", "stays", "goes", "returns", "climbs", "empty", "blank", "slash",
	    "long", "two", "H1/linux", "ALL", "unknown") )
		{
		schedule after { show("first", id) };
		after += 0.01sec;
		}

	# The same connection at another gateway is a new one, and what the one before says no longer counts.
	schedule 2sec { later_hello("moves", "1", set("batches", "via/gw-2")) };
	schedule 3sec { left("moves", "gw-1") };
	schedule 5sec { show("moved", "moves") };
	schedule 6sec { later_hello("moves", "2", set("batches")) };
	schedule 7sec { left("moves", "gw-2") };
	schedule 7sec { left("moves", "") };
	schedule 9sec { show("now direct", "moves") };

	# Gone only at its own gateway, and only if it does not say otherwise.
	schedule 2sec { left("stays", "GW1") };
	schedule 2sec { left("goes", "GW1") };
	schedule 2sec { left("returns", "gw1") };
	schedule 2.5sec { later_hello("returns", "2", set("batches", "via/gw1")) };
	schedule 5.01sec { show("others", "stays") };
	schedule 5.02sec { show("others", "goes") };
	schedule 5.029999999999999sec { show("others", "returns") };
	}
