# @TEST-DOC: A connection that fails has the process that tried, which only its end tells of.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 0.5'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p id.resp_h id.resp_p proto orig_hid orig_pid orig_process resp_hid resp_pid resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "tried", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.6, "failed");
	}
