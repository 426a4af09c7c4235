# @TEST-DOC: conn.log has the bytes that each host counted, if it reported the end before the connection was removed.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1003 10.0.0.2:80 0 9'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m id.orig_p orig_process orig_host_sent orig_host_received resp_host_sent resp_host_received < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

function row(pid: count, local_end: string, remote_end: string, more: string): string
	{
	return fmt("{\"pid\": %d, \"process\": \"p%d\", \"cookie\": %d, \"protocol\": 6, %s, %s, \"entity_id\": \"E-%d\", %s}",
	    pid, pid, pid, local_end, remote_end, pid, more);
	}

function local_end(host: string, p: count): string
	{
	return fmt("\"local_addr\": \"%s\", \"local_port\": %d", host, p);
	}

function remote_end(host: string, p: count): string
	{
	return fmt("\"remote_addr\": \"%s\", \"remote_port\": %d", host, p);
	}

event report(agent_id: string, rows: string)
	{
	event ZeekAgent::claim_rows(agent_id, network_time(), "[" + rows + "]");
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.2));
	local began = "\"began\": 1700000000.0";
	local over = "\"began\": 1700000000.0, \"ended\": 1700000001.0, ";
	local ended = "\"ended\": 1700000001.0, ";
	# In two reports, in one, by both hosts; with its end too late, and from an agent that does not count.
	event report("A", row(11, local_end("10.0.0.1", 1000), remote_end("10.0.0.2", 80), began));
	schedule 2sec { report("A", row(11, local_end("10.0.0.1", 1000), remote_end("10.0.0.2", 80),
	    ended + "\"bytes_sent\": 5, \"bytes_received\": 7")) };
	schedule 2sec { report("B", row(21, local_end("10.0.0.2", 80), remote_end("10.0.0.1", 1000),
	    over + "\"bytes_sent\": 7, \"bytes_received\": 5")) };
	schedule 2sec { report("A", row(12, local_end("10.0.0.1", 1001), remote_end("10.0.0.2", 80),
	    over + "\"bytes_sent\": 0, \"bytes_received\": 1")) };
	schedule 2sec { report("A", row(13, local_end("10.0.0.1", 1002), remote_end("10.0.0.2", 80),
	    over + "\"direction\": \"outbound\"")) };
	event report("A", row(14, local_end("10.0.0.1", 1003), remote_end("10.0.0.2", 80), began));
	}
