# @TEST-DOC: Which fields conn.log has, users by name, notices, and a script that looks a flow up.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h orig_hid orig_pid orig_process orig_exe orig_user < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h note orig_hid orig_process orig_exe orig_user resp_process < notice.log > notice
# @TEST-EXEC: btest-diff notice

@load base/frameworks/notice

redef ZeekAgent::conn_fields = { "user", "cmdline", "exe" };
redef enum Notice::Type += { Odd };

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "curl", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0);
	event ZeekAgent::user_rows("A", F, "[{\"uid\": \"1000\", \"name\": \"ann\"}, {\"uid\": \"1000\", \"name\": \"alias\"}]");
	}

event connection_state_remove(c: connection)
	{
	NOTICE([$note=Odd, $conn=c, $msg="odd"]);
	local start = c$start_time;
	print ZeekAgent::process_at(10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, start, start + 1sec)$user;
	print ZeekAgent::process_at(10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, start - 1min, start - 30sec)?$hid;
	}
