# @TEST-DOC: Each connection of ends that are used again has its own process: by time, in whatever order claims come.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:80 0 1' 'tcp 10.0.0.1:1000 10.0.0.2:80 4 5' 'tcp 10.0.0.1:1000 10.0.0.2:80 20 21' 'udp 10.0.0.1:1001 10.0.0.2:53 0 1' 'udp 10.0.0.1:1001 10.0.0.2:53 100 101' 'udp 10.0.0.9:1 10.0.0.9:2 26.5 27'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${FILES}/claims.zeek %INPUT > zeek.out
# @TEST-EXEC: zeek-cut -m ts id.orig_p proto orig_process orig_pid < conn.log | (read -r head; echo "$head"; sort) > conn
# @TEST-EXEC: btest-diff conn
#
# The packets after 26 seconds let Zeek log the connection before when it ends, and not when the next one begins.

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "first", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 0.0);
	Test::claim("A", "first", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 1.0, "closed");
	# What comes later is known earlier here.
	Test::claim("A", "third", 13, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 20.0);
	Test::claim("A", "third", 13, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 21.0, "closed");
	schedule 5.5sec { Test::claim_later("A", "second", 12, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 4.0, "established",
	                                    "outbound", 0) };
	schedule 5.6sec { Test::claim_later("A", "second", 12, 10.0.0.1, 1000/tcp, 10.0.0.2, 80/tcp, 5.0, "closed",
	                                    "outbound", 0) };
	Test::claim("A", "early", 21, 10.0.0.1, 1001/udp, 10.0.0.2, 53/udp, 0.0);
	schedule 101sec { Test::claim_later("A", "late", 22, 10.0.0.1, 1001/udp, 10.0.0.2, 53/udp, 99.9, "established",
	                                    "outbound", 0) };
	}
