# @TEST-DOC: The example that gives notice of a connection from a process that is not known to use the service.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:22 0 1' 'tcp 10.0.0.1:1002 10.0.0.2:22 0 1'
# @TEST-EXEC: ln -s ${PACKAGE} zeek-agent
# @TEST-EXEC: zeek -C -r flows.pcap ${EXAMPLES}/unexpected-process.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m id.orig_p note msg orig_process orig_exe < notice.log > notices
# @TEST-EXEC: btest-diff notices

redef UnexpectedProcess::more_clients += { "22/tcp rsync" };

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::claim("A", "ssh", 11, 10.0.0.1, 1000/tcp, 10.0.0.2, 22/tcp, 0.0);
	Test::claim("A", "rsync", 13, 10.0.0.1, 1002/tcp, 10.0.0.2, 22/tcp, 0.0);
	Test::claim("A", "perl", 12, 10.0.0.1, 1001/tcp, 10.0.0.2, 22/tcp, 0.0);
	}
