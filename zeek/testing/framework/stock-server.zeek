# @TEST-DOC: The port that the stock server script, which came with 8.1, opens is shared.
#
# @TEST-REQUIRES: zeek -a frameworks/cluster/websocket/server
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ZEEK_WEBSOCKET_LISTEN_PORT=${WS_PORT%/*} zeek frameworks/cluster/websocket/server ${PACKAGE} ${FILES}/test.zeek %INPUT 2> shared
# @TEST-EXEC: grep -q 'listening for agents at ws://127.0.0.1' shared
# @TEST-EXEC: ! grep -i 'error\|cannot' shared

global terminate_now: event();

event zeek_init()
	{
	schedule 2sec { terminate_now() };
	}

event terminate_now()
	{
	terminate();
	}
