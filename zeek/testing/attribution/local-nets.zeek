# @TEST-DOC: Only agents with an address in Site::local_nets are queried for attribution, less often while there are many.
#
# @TEST-EXEC: seq 0 0.25 25 | sed 's/.*/udp 10.0.0.9:1 10.0.0.9:2 & 0/' | tr '\n' '\0' | xargs -0 ${SCRIPTS}/flows flows.pcap
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > configured
# @TEST-EXEC: btest-diff configured
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT Site::local_nets='{}' > unconfigured
# @TEST-EXEC: btest-diff unconfigured

@load base/utils/site

redef Site::local_nets = { 192.0.2.0/25, [2001:db8::]/32 };
redef Site::private_address_space_is_local = F;

module ZeekAgent;

redef agent_timeout = 1day;
redef local_agents = { "named" };
redef many_agents = 5;

function show(what: string)
	{
	local ids: vector of string;

	for ( id in claimants )
		ids += id;

	local intervals: vector of interval;
	local number = 0;

	for ( query_id, state in queries )
		if ( state?$is_for && state$query$sql_stmt == fmt(flow_events, "", "", "") )
			{
			++number;
			intervals += state$query$schedule_;
			}

	print what, join_string_vec(sort(ids, strcmp), " "), number, cat(intervals);
	}

event shown(what: string)
	{
	show(what);
	}

event later_join(agent_id: string, addresses: set[addr])
	{
	Test::join(agent_id, addresses);
	}

event left(agent_id: string)
	{
	event ZeekAgentAPI::agent_shutdown_v1(Context($agent_id=agent_id, $host_time=current_time()));
	}

event option_changed(name: string, value: any)
	{
	Option::set(name, value);
	}

event Test::begin()
	{
	Test::join("INSIDE", set(198.51.100.1, 192.0.2.1));
	Test::join("INSIDE6", set([2001:db8::1]));
	Test::join("OUTSIDE", set(198.51.100.2, 192.0.2.200));
	Test::join("PRIVATE", set(10.0.0.1));
	Test::join("NAMED", set(198.51.100.3));
	Test::join("UNKNOWN", set());
	schedule 1sec { shown("first") };

	# An address comes, and goes.
	schedule 2sec { later_join("OUTSIDE", set(192.0.2.2)) };
	schedule 2sec { later_join("INSIDE6", set([2001:db9::1])) };
	schedule 3sec { shown("other addresses") };

	schedule 4sec { later_join("A", set(192.0.2.11)) };
	schedule 4sec { later_join("B", set(192.0.2.12)) };
	schedule 4sec { later_join("C", set(192.0.2.13)) };
	schedule 5sec { shown("many") };
	schedule 6sec { left("A") };
	schedule 6sec { left("B") };
	schedule 7sec { shown("just below") };
	schedule 8sec { left("C") };
	schedule 9sec { shown("few") };

	schedule 10sec { option_changed("ZeekAgent::claim_interval", 2sec) };
	schedule 11sec { shown("slower") };
	schedule 12sec { option_changed("Site::local_nets", set(198.51.100.0/24)) };
	schedule 13sec { shown("other nets") };
	schedule 14sec { option_changed("ZeekAgent::local_agents", set("private")) };
	schedule 15sec { shown("other local agents") };
	schedule 16sec { option_changed("ZeekAgent::attribute_local_nets_only", F) };
	schedule 17sec { shown("all") };
	schedule 18sec { option_changed("ZeekAgent::many_agents", 100) };
	schedule 19sec { shown("many are more") };
	}
