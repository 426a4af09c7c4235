# @TEST-DOC: What a protocol found about a program keeps its version, and a program that is client and server has both roles.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:443 0 1' 'tcp 10.0.0.1:1001 10.0.0.2:443 2 3' 'tcp 10.0.0.2:1002 10.0.0.1:80 4 5'
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} ${PACKAGE}/attribution/software.zeek ${FILES}/claims.zeek %INPUT
# @TEST-EXEC: zeek-cut host software_type name version.major version.minor < software.log | sort > software
# @TEST-EXEC: btest-diff software
# @TEST-EXEC: btest-diff .stdout

redef Software::asset_tracking = ALL_HOSTS;

event Software::version_change(old: Software::Info, new: Software::Info)
	{
	print "changed", old$name;
	}

event Test::begin()
	{
	Test::join("A", set(10.0.0.1));
	Test::join("B", set(10.0.0.2));
	Test::claim("A", "curl", 1, 10.0.0.1, 1000/tcp, 10.0.0.2, 443/tcp, 0.0);
	Test::claim("A", "curl", 2, 10.0.0.1, 1001/tcp, 10.0.0.2, 443/tcp, 2.0);
	Test::claim("B", "envoy", 3, 10.0.0.2, 443/tcp, 10.0.0.1, 1000/tcp, 0.0, "established", "inbound");
	Test::claim("B", "envoy", 3, 10.0.0.2, 443/tcp, 10.0.0.1, 1001/tcp, 2.0, "established", "inbound");
	Test::claim("B", "envoy", 3, 10.0.0.2, 1002/tcp, 10.0.0.1, 80/tcp, 4.0);
	}

# As a protocol's analyzer reports a client, before its process is known and after that.
event connection_established(c: connection)
	{
	Software::found(c$id, Software::Info($host=c$id$orig_h, $name="curl", $version=Software::Version($major=7, $minor=88)));
	}

event connection_state_remove(c: connection) &priority=-10
	{
	Software::found(c$id, Software::Info($host=c$id$orig_h, $name="curl", $version=Software::Version($major=7, $minor=88)));
	}

event zeek_done()
	{
	print Software::tracked[10.0.0.1]["curl"]$version;
	}
