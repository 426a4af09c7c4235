# @TEST-DOC: A host and its container use the same port to the same server, and one of them gets another one: each connection has its own process, in both directions.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 192.0.2.1:443 0 9' 'tcp 10.0.0.1:4000 192.0.2.1:443 0 9' 'tcp 10.0.0.1:1001 192.0.2.1:443 0 9' 'tcp 10.0.0.1:4001 192.0.2.1:443 0 9' 'tcp 192.0.2.9:2000 10.0.0.1:8080 0 9' 'udp 10.0.0.9:1 10.0.0.9:2 9.2 9.5' 'udp 10.0.0.9:1 10.0.0.9:2 15 16'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p orig_process resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

global row: event(pid: count, process: string, times: string, local_h: addr, local_p: count, remote: string, translated: string);

event row(pid: count, process: string, times: string, local_h: addr, local_p: count, remote: string, translated: string)
	{
	local rest = translated == "" ? "" : ", " + translated;
	event ZeekAgent::claim_rows("A", double_to_time(1700000000.0), fmt(
	    "[{\"pid\": %d, \"process\": \"%s\", %s, \"cookie\": %d, \"protocol\": 6, \"local_addr\": \"%s\", \"local_port\": %d, %s%s}]",
	    pid, process, times, pid, local_h, local_p, remote, rest));
	}

const server = "\"remote_addr\": \"192.0.2.1\", \"remote_port\": 443";

function outside(local_p: count): string
	{
	return fmt("\"translated_local_addr\": \"10.0.0.1\", \"translated_local_port\": %d, \"translated_remote_addr\": \"192.0.2.1\", \"translated_remote_port\": 443",
	    local_p);
	}

event Test::begin()
	{
	local began = "\"direction\": \"outbound\", \"state\": \"established\", \"time_\": 1700000000.0";
	Test::join("A", set(10.0.0.1));
	# The container keeps its port, the host's process gets another one.
	event row(11, "host", began, 10.0.0.1, 1000, server, outside(4000));
	event row(12, "container", began, 172.17.0.2, 1000, server, outside(1000));
	# The same, and the agent learns of the translation when the flow ends.
	event row(13, "late-host", began, 10.0.0.1, 1001, server, "");
	event row(14, "late-container", began, 172.17.0.2, 1001, server, "");
	schedule 9.1sec { row(13, "late-host", "\"state\": \"closed\", \"time_\": 1700000009.0", 10.0.0.1, 1001, server, outside(4001)) };
	schedule 9.1sec { row(14, "late-container", "\"state\": \"closed\", \"time_\": 1700000009.0", 172.17.0.2, 1001, server, outside(1001)) };
	# From outside, to a published port.
	event row(15, "nginx", "\"direction\": \"inbound\", \"state\": \"established\", \"time_\": 1700000000.0", 172.17.0.2, 80,
	          "\"remote_addr\": \"192.0.2.9\", \"remote_port\": 2000",
	          "\"translated_local_addr\": \"10.0.0.1\", \"translated_local_port\": 8080, \"translated_remote_addr\": \"192.0.2.9\", \"translated_remote_port\": 2000");
	}
