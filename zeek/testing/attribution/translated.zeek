# @TEST-DOC: Flows of containers have their process on the far side of address translation, too.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 192.0.2.1:80 0 1' 'tcp 192.0.2.9:2000 10.0.0.1:8080 0 1' 'udp 10.0.0.1:1001 192.0.2.1:53 0 1' 'tcp 10.0.0.7:1000 192.0.2.1:80 0 1' 'tcp 10.0.0.1:4000 192.0.2.1:443 0 1' 'tcp 10.0.0.1:1002 192.0.2.1:443 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p id.resp_h id.resp_p proto orig_hid orig_pid orig_process resp_hid resp_pid resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

const knows_translation = "[{\"time_\": 1700000000, \"pid\": 14, \"process\": \"knows\", \"protocol\": 6, "
    + "\"state\": \"established\", \"direction\": \"outbound\", \"local_addr\": \"172.17.0.2\", \"local_port\": 1002, "
    + "\"remote_addr\": \"192.0.2.1\", \"remote_port\": 443, \"translated_local_addr\": \"10.0.0.1\", "
    + "\"translated_local_port\": 4000, \"translated_remote_addr\": \"192.0.2.1\", \"translated_remote_port\": 443}]";

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	# Out of a container: the address is another, the port the same.
	Test::claim("A", "inside", 11, 172.17.0.2, 1000/tcp, 192.0.2.1, 80/tcp, 0.0);
	# Into a container, whose published port is 8080.
	Test::claim("A", "nginx", 12, 172.17.0.2, 80/tcp, 192.0.2.9, 2000/tcp, 0.0, "established", "inbound");
	# A socket whose own address was not known.
	Test::claim("A", "unbound", 13, 0.0.0.0, 1001/udp, 192.0.2.1, 53/udp, 0.0);
	# The agent knows that the port became another one, and that the one with the same port is not this one.
	event ZeekAgent::claim_rows("A", double_to_time(1700000000.0), knows_translation);
	}
