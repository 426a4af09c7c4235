# @TEST-DOC: Which command lines read a trace, as Zeek itself decides it; those that only look so open the port.
#
# @TEST-PORT: WS_PORT
#
# @TEST-EXEC: zeek ${PACKAGE} %INPUT ZeekAgent::listen=F > arguments
# @TEST-EXEC: btest-diff arguments
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek ${PACKAGE} %INPUT -e 'print "run -bar";' > /dev/null 2> joined
# @TEST-EXEC: grep -q 'listening for agents at ws://127.0.0.1' joined
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap 'tcp 10.0.0.1:1000 10.0.0.2:443 0 1'
# @TEST-EXEC: for option in '-r flows.pcap' -Crflows.pcap --readf=flows.pcap '--readfile flows.pcap'; do ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek $option ${PACKAGE} > /dev/null 2>> traces || exit 1; done
# @TEST-EXEC: ! grep -i 'listening\|error\|warning' traces
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek -r flows.pcap ${PACKAGE} misread.zeek > /dev/null 2> misread
# @TEST-EXEC: ! grep -i 'listening\|error\|warning' misread

module ZeekAgent;

event end()
	{
	terminate();
	}

event zeek_init() &priority=-1000
	{
	for ( _, line in vector("-ibr0", "-f|port 80|-i|lo", "-fport 80", "-e|x -bar", "-e|-r", "-w|-r", "--re-level|-r", "-B|broker",
	                        "a.zeek|x=-r", "--|-r|x", "--exec|--readfile", "-r|x", "-Crx", "-C|-rx", "-j|-r|x", "a.zeek|-r|x",
	                        "--readfile|x", "--readfile=x", "--readf=x", "-f|port 80|-r|x") )
		print has_trace_argument(split_string("zeek|" + line, /\|/)), line;

	schedule 2sec { end() };
	}

# @TEST-START-FILE misread.zeek
@load base/misc/version

# Stands for arguments that this package would misread: without its own reading of them, Zeek ends with its trace all the same.
@if ( Version::number >= 80100 )
@load frameworks/cluster/backend/zeromq
redef Cluster::Backend::ZeroMQ::run_proxy_thread = T;
module ZeekAgent;
redef has_chosen_backend = T;
@endif
# @TEST-END-FILE
