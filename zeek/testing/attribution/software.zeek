# @TEST-DOC: software.log names the programs behind connections, each once for a host, the ones that are wanted.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:443 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:443 1 2' 'tcp 10.0.0.3:1002 10.0.0.2:443 2 3'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/software.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut -m host host_p software_type name < software.log > software
# @TEST-EXEC: btest-diff software
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/software.zeek ${FILES}/claims.zeek %INPUT 'ZeekAgent::software_types={ZeekAgent::SERVER_PROCESS}'
# @TEST-EXEC: zeek-cut software_type name < software.log > servers
# @TEST-EXEC: btest-diff servers

redef Software::asset_tracking = ALL_HOSTS;

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.2));
	Test::claim("A", "curl", 1, 10.0.0.1, 1000/tcp, 10.0.0.2, 443/tcp, 0.0);
	Test::claim("A", "curl", 2, 10.0.0.1, 1001/tcp, 10.0.0.2, 443/tcp, 1.0);
	Test::claim("B", "nginx", 3, 10.0.0.2, 443/tcp, 10.0.0.1, 1000/tcp, 0.0, "established", "inbound");
	Test::claim("B", "nginx", 3, 10.0.0.2, 443/tcp, 10.0.0.1, 1001/tcp, 1.0, "established", "inbound");
	Test::claim("B", "nginx", 3, 10.0.0.2, 443/tcp, 10.0.0.3, 1002/tcp, 2.0, "established", "inbound");
	}
