# @TEST-DOC: Claims count for addresses that their agent announced; inner ones of hosts only when asked for.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 192.168.1.10:1000 192.0.2.1:80 0 1' 'tcp 192.168.1.10:1001 192.0.2.1:80 0 1' 'tcp 192.168.1.10:1002 192.0.2.1:80 0 1' 'tcp 127.0.0.1:1003 127.0.0.1:80 0 1' 'tcp 172.17.0.1:1004 172.17.0.2:80 0 1'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m id.orig_h id.orig_p id.resp_h id.resp_p proto orig_hid orig_pid orig_process resp_hid resp_pid resp_process < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn

event Test::begin()
	{
	# Two networks with the same private addresses.
	Test::join("A", set(192.168.1.10, 172.17.0.1));
	Test::join("B", set(192.168.1.10, 172.17.0.1));
	Test::join("C", set(10.9.9.9));
	Test::claim("A", "of-a", 11, 192.168.1.10, 1000/tcp, 192.0.2.1, 80/tcp, 0.0);
	Test::claim("B", "of-b", 21, 192.168.1.10, 1001/tcp, 192.0.2.1, 80/tcp, 0.0);
	# Both say it is theirs: nobody can know.
	Test::claim("A", "of-a", 12, 192.168.1.10, 1002/tcp, 192.0.2.1, 80/tcp, 0.0);
	Test::claim("B", "of-b", 22, 192.168.1.10, 1002/tcp, 192.0.2.1, 80/tcp, 0.1);
	# Not an address of C's.
	Test::claim("C", "of-c", 31, 192.168.1.10, 1000/tcp, 192.0.2.1, 80/tcp, 0.0);
	# Everybody has these.
	Test::claim("A", "of-a", 13, 127.0.0.1, 1003/tcp, 127.0.0.1, 80/tcp, 0.0);
	Test::claim("A", "of-a", 14, 172.17.0.1, 1004/tcp, 172.17.0.2, 80/tcp, 0.0);
	}
