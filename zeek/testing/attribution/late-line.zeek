# @TEST-DOC: The line of a TCP connection waits for a late claim, unless the same ends have another connection meanwhile.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:80 6.5 7' 'tcp 10.0.0.1:1003 10.0.0.2:80 0 1' 'tcp 10.0.0.3:1004 10.0.0.2:80 0 1' 'udp 10.0.0.9:1 10.0.0.9:2 6.2 7.1' 'udp 10.0.0.9:3 10.0.0.9:4 8.1 9.1' 'udp 10.0.0.9:5 10.0.0.9:6 10.3 10.6' 'udp 10.0.0.9:7 10.0.0.9:8 14 15'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m ts id.orig_p proto orig_process orig_hid < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out
#
# A connection is removed five seconds after its end, and its line waits for four more. The third one's ends have another
# one then; the fourth one's claim comes after the line; the fifth one's agent records no events. Datagrams move the time on.

event late(pid: count, local_h: addr, local_p: port)
	{
	Test::claim("A", fmt("late-%d", pid), pid, local_h, local_p, 10.0.0.2, 80/tcp, 1.0, "closed");
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1), set("sockets_events"));
	Test::join("B", set(10.0.0.3), set("sockets"));
	schedule 7sec { late(11, 10.0.0.1, 1000/tcp) };
	schedule 8.9sec { late(12, 10.0.0.1, 1001/tcp) };
	schedule 8sec { late(13, 10.0.0.1, 1002/tcp) };
	schedule 10.5sec { late(14, 10.0.0.1, 1003/tcp) };
	}

event ZeekAgent::connection_attributed(c: connection, is_orig: bool, process: ZeekAgent::Process)
	{
	print c$id$orig_p, is_orig ? "orig" : "resp", process$process;
	}

event zeek_done()
	{
	print "unattributed", ZeekAgent::claim_counts["unattributed"];
	}
