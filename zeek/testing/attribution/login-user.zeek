# @TEST-DOC: A connection carries the user who logged in over it: of the responder's agent, while it existed, and only if it is verified.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1003 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1004 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1005 10.0.0.2:22 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_p resp_hid resp_pid resp_process login_user login_pid < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

function logged_in(agent_id: string, user: string, remote_p: count, pid: count, verified: bool, action: string,
    at: double &default=0.5)
	{
	local row = ZeekAgent_Logins::Columns($time_=double_to_time(1700000000.0 + at), $action=action, $user=user, $remote_addr=10.0.0.1, $remote_port=remote_p,
	    $pid=pid, $outcome="success", $verified=verified);
	event ZeekAgent_Logins::log_logins(ZeekAgent_Logins::Info($t=network_time(), $hid=agent_id, $host="b", $columns=row));
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.2));

	for ( _, p in vector(1000/tcp, 1001/tcp, 1002/tcp, 1003/tcp, 1004/tcp, 1005/tcp) )
		Test::claim("B", "sshd", 7, 10.0.0.2, 22/tcp, 10.0.0.1, p, 0.001, "established", "inbound", port_to_count(p));

	logged_in("B", "alice", 1000, 21, T, "login");
	# A user of B wrote this to the system log.
	logged_in("B", "root", 1001, 22, F, "login");
	# This is a login on another host, by a client with the same address and port.
	logged_in("A", "bob", 1002, 23, T, "login");
	logged_in("B", "carol", 1003, 24, T, "failed");
	# The same port was used by an earlier connection, and is by a later one.
	logged_in("B", "dave", 1004, 25, T, "login", -60.0);
	logged_in("B", "erin", 1005, 26, T, "login", 60.0);
	}
