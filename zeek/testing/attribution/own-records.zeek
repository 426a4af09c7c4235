# @TEST-DOC: A script that changes a process that it was given changes no other connection; users' names are the current ones.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:80 20 21' 'udp 10.0.0.9:1 10.0.0.9:2 10 11'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p orig_process orig_exe orig_user < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "curl", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0, "established", "outbound", 1);
	Test::claim("A", "curl", 11, 10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, 0.0, "established", "outbound", 2);
	Test::claim("A", "curl", 11, 10.0.0.1, 1002/tcp, 10.0.0.2, 80/tcp, 20.0, "established", "outbound", 3);
	event ZeekAgent::user_rows("A", F, "[{\"uid\": \"1000\", \"name\": \"ann\"}]");
	}

event connection_state_remove(c: connection) &priority=10
	{
	if ( c$id$orig_p != 1000/tcp )
		return;

	local process = ZeekAgent::process_of(c, T);
	process$process = "changed";
	process = ZeekAgent::process_at(10.0.0.1, 1001/tcp, 10.0.0.2, 80/tcp, c$start_time, network_time());
	process$exe = "/bin/changed";
	event ZeekAgent::user_rows("A", T, "[{\"uid\": \"1000\", \"name\": \"ann\"}]");
	event ZeekAgent::user_rows("A", F, "[{\"uid\": \"1000\", \"name\": \"anna\"}]");
	}
