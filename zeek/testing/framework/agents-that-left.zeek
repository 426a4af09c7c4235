# @TEST-DOC: Nothing stays of agents that have left: neither at the node that serves them nor at the others.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'udp 10.0.0.9:1 10.0.0.9:2 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:80 10 12' 'udp 10.0.0.9:3 10.0.0.9:4 30 10' 'udp 10.0.0.9:3 10.0.0.9:4 40 10' 'udp 10.0.0.9:3 10.0.0.9:4 50 10' 'udp 10.0.0.9:3 10.0.0.9:4 60 10' 'udp 10.0.0.9:5 10.0.0.9:6 425 10' 'udp 10.0.0.9:7 10.0.0.9:8 90000 10' 'udp 10.0.0.9:9 10.0.0.9:10 100000 10'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/known-services.zeek ${FILES}/claims.zeek %INPUT > tables
# @TEST-EXEC: btest-diff tables

module ZeekAgent;

redef agent_timeout = 1day;
redef table_expire_interval = 1sec;

function show(what: string)
	{
	local asked = 0;

	for ( _, state in queries )
		asked += |state$asked|;

	print fmt("%s: agents %d addresses %d users %d listeners %d numbers %d responders %d asked %d departed %d", what, |agents|,
	    |ids_by_address|, |user_names|, |listeners|, |listener_numbers|, |responders|, asked, |departed|);
	}

event shown(what: string)
	{
	show(what);
	}

event left(agent_id: string)
	{
	event ZeekAgentAPI::agent_shutdown_v1(Context($agent_id=agent_id, $host_time=current_time()));
	}

event ignored(ctx: Context, columns: Listener)
	{
	}

event zeek_init() &priority=-10
	{
	query(Query($sql_stmt="SELECT 1", $event_=ignored));
	}

event Test::begin()
	{
	local numbers = vector(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);

	for ( _, n in numbers )
		{
		local id = fmt("H%d", n);
		local address = n == 0 ? 10.0.0.2 : counts_to_addr(vector(167772161 + 256 * n));

		# A worker is informed of agents.
		if ( n == 9 )
			event agent_update(id, Agent($last_seen=network_time(), $last_heard=current_time(), $hello_id="",
			    $hello=ZeekAgentAPI::AgentHelloV1($agent_id=id, $instance_id="I", $addresses=set(address))));
		else
			Test::join(id, set(address));

		event user_rows(id, F, "[{\"uid\": \"1000\", \"name\": \"ann\"}, {\"uid\": \"0\", \"name\": \"root\"}]");
		event listener_rows(id, F, "[{\"pid\": 7, \"protocol\": 6, \"port_\": 80, \"address\": \"0.0.0.0\"}, {\"pid\": 7, \"protocol\": 6, \"port_\": 81, \"address\": \"0.0.0.0\"}]");
		}

	Test::claim("H0", "nginx", 7, 10.0.0.2, 80/tcp, 10.0.0.1, 1000/tcp, 10.0, "established", "inbound");
	schedule 35sec { shown("all are there") };

	schedule 45sec { agent_gone("H9") };

	for ( _, m in numbers )
		if ( m < 8 )
			schedule 45sec { left(fmt("H%d", m)) };

	schedule 55sec { shown("one remains") };
	schedule 420sec { shown("after five minutes") };
	schedule 99000sec { shown("after a day") };
	}
