# @TEST-DOC: The port that ZeekControl opens is shared; layouts in which agents would never be answered, and addresses that are none, are told.
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek ${PACKAGE} ${FILES}/test.zeek %INPUT as-zeekctl.zeek 2> shared
# @TEST-EXEC: grep -q 'listening for agents at ws://127.0.0.1' shared
# @TEST-EXEC: ! grep -i 'error\|cannot' shared
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} python3 hold.py zeek ${PACKAGE} ${FILES}/test.zeek %INPUT 2> taken
# @TEST-EXEC: grep -q 'cannot listen for agents at ws://127.0.0.1' taken
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_ADDRESS=localhost ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek ${PACKAGE} ${FILES}/test.zeek %INPUT 2> wrong-address
# @TEST-EXEC: grep -q 'not listening .* is no IP address: localhost' wrong-address
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=99999 zeek ${PACKAGE} ${FILES}/test.zeek %INPUT 2> wrong-port
# @TEST-EXEC: grep -q 'not listening .* is no port: 99999' wrong-port
# @TEST-EXEC: ! grep 'listening for agents at' wrong-address wrong-port
# @TEST-EXEC: zeek ${PACKAGE} ${FILES}/test.zeek %INPUT ZeekAgent::listen=F 2> off
# @TEST-EXEC: ! grep -q listening off
# @TEST-EXEC: ZEEKPATH=.:$(zeek --help 2>&1 | sed -n 's/.*ZEEKPATH.*(\(.*\))/\1/p') CLUSTER_NODE=manager zeek frameworks/cluster/backend/zeromq ${PACKAGE} ${FILES}/test.zeek %INPUT Cluster::Backend::ZeroMQ::run_proxy_thread=T 2> logger
# @TEST-EXEC: grep -q 'manager that is also the logger never answers' logger
# @TEST-EXEC: zeek frameworks/cluster/backend/zeromq ${PACKAGE} ${FILES}/test.zeek %INPUT 2> alone
# @TEST-EXEC: grep -q 'redef Cluster::Backend::ZeroMQ::run_proxy_thread = T' alone
# @TEST-EXEC: for output in shared taken off logger; do ! grep run_proxy_thread $output || exit 1; done

global terminate_now: event();

event zeek_init()
	{
	schedule 2sec { terminate_now() };
	}

event terminate_now()
	{
	terminate();
	}

# @TEST-START-FILE as-zeekctl.zeek
event zeek_init()
	{
	Cluster::listen_websocket([$listen_addr=127.0.0.1,
	                           $listen_port=to_port(getenv("ZEEK_WEBSOCKET_LISTEN_PORT") + "/tcp")]);
	}
# @TEST-END-FILE

# @TEST-START-FILE hold.py
import os
import socket
import subprocess
import sys

with socket.create_server(("127.0.0.1", int(os.environ["ZEEK_WEBSOCKET_LISTEN_PORT"]))):
    sys.exit(subprocess.run(sys.argv[1:]).returncode)
# @TEST-END-FILE

# @TEST-START-FILE cluster-layout.zeek
redef Cluster::manager_is_logger = T;
redef Cluster::nodes = {
	["manager"] = [$node_type=Cluster::MANAGER, $ip=127.0.0.1, $p=27991/tcp],
	["worker"] = [$node_type=Cluster::WORKER, $ip=127.0.0.1, $manager="manager"],
};
# @TEST-END-FILE
