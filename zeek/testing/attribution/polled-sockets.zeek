# @TEST-DOC: Agents that only list sockets, without cookies and ids of processes: each connection has its process for as long as the socket is listed.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 9' 'tcp 10.0.0.1:1000 10.0.0.2:80 20 29' 'udp 10.0.0.1:1001 10.0.0.2:53 0 1' 'udp 10.0.0.1:1001 10.0.0.2:53 200 201' 'tcp 10.0.0.1:1002 10.0.0.2:80 300 301' 'udp 10.0.0.9:1 10.0.0.9:2 30 100' 'udp 10.0.0.9:1 10.0.0.9:2 310 311'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m ts id.orig_p orig_pid orig_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: sort zeek.out > events
# @TEST-EXEC: btest-diff events

module ZeekAgent;

redef agent_timeout = 1day;
redef table_expire_interval = 1sec;

global listed: event(at: double, change: ChangeType, pid: count,
    protocol: count, local_p: count, remote_p: count);

event listed(at: double, change: ChangeType, pid: count, protocol: count,
    local_p: count, remote_p: count)
	{
	local ctx = Context($agent_id="A", $host_time=double_to_time(1700000000.0 +
	    at), $query_id="q", $change=change);
	event ZeekAgent::socket_row(ctx, SocketRow($pid=pid, $process=fmt("p%d", pid),
	    $protocol=protocol, $local_addr=10.0.0.1, $local_port=local_p,
	    $remote_addr=10.0.0.2, $remote_port=remote_p));
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	event listed(0.1, Add, 11, 6, 1000, 80);
	event listed(0.1, Add, 12, 17, 1001, 53);
	event listed(0.1, Add, 13, 6, 1002, 80);
	schedule 10sec { listed(10.0, Delete, 11, 6, 1000, 80) };
	schedule 20.1sec { listed(20.1, Add, 14, 6, 1000, 80) };
	# Not the connection that comes afterwards.
	schedule 100sec { listed(100.0, Delete, 13, 6, 1002, 80) };
	}

event connection_attributed(c: connection, is_orig: bool, process: Process)
	{
	print c$id$orig_p, is_orig, process$process;
	}
