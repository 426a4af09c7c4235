# @TEST-DOC: Every table has its log: the stock package's names and fields first, then what our agent knows besides.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: for log in zeek-agent*.log; do btest-diff $log || exit 1; done
# @TEST-EXEC: ls zeek-agent*.log > logs
# @TEST-EXEC: btest-diff logs
# @TEST-EXEC: ! grep -i error zeek.err

redef ZeekAgent_Files::paths_to_watch = { "/etc/it's" };
redef ZeekAgent_SSH::key_paths_to_watch = { ["linux"] = set("/home/*/.ssh/authorized_keys") };
redef ZeekAgent::attribute_connections = F;

# @TEST-START-FILE scenario.py
import asyncio

from agents import SOCKET_TABLES, agent

OWN_TABLES = ("zeek_agent_gaps", "zeek_agent_sources", "zeek_agent_tables")
TABLES = (*SOCKET_TABLES, "listening_ports", "system_logs_events", "files_list", *OWN_TABLES)
ROW = {
    "active": True, "address": "0.0.0.0", "backend": "ebpf", "cause": "overrun", "cmdline": "prog --flag",
    "community_id": "1:x", "container_id": "c0ffee", "content": "ssh-rsa AAA",
    "cwd": "/", "direction": "outbound", "duration": 1.5, "email": "a@b", "entity_id": "E1", "evicted": 5, "exe": "/bin/prog",
    "exit_code": -9, "facility": 3, "family": "IPv4", "from": 1600000000.0, "full_name": "Ann", "gid": 100, "groups": ["staff"], "home": "/home/ann",
    "identifier": "tag", "is_admin": True, "is_system": False, "key": "Port", "last_error": "Oops", "level": "info", "local_addr": "10.0.0.1", "local_port": 1000,
    "loginuid": 1000, "lost_decode": 3, "lost_overrun": 2, "lost_store": 4, "message": "tab\\x09in", "mode": "644", "mtime": 1600000000.5, "name": "ann", "number": 3,
    "parent_entity_id": "E0", "parent_exe": "/bin/sh", "parent_name": "sh", "path": "/etc/x", "pid": 42, "port_": 80,
    "ppid": 1, "priority": "20", "process": "prog", "protocol": 6, "remote_addr": "fd00::2", "remote_port": 443,
    "reason": "better one", "rgid": 101, "ruid": 1001, "seq": 7, "shell": "/bin/sh", "size": 12, "source": "processes", "start_time": 1600000000.25, "startup": 2.5,
    "state": "started", "time_": 1600000000.125, "type_": "file", "uid": 1000, "unit": "a.service", "until": 1600000001.0, "value": "22",
}


async def main() -> None:
    async with agent() as one:
        await one.hello(hostname="alpha", addresses=("10.0.0.1",), tables=TABLES)
        await one.settled()
        for query_id, query in sorted(one.queries.items(), key=lambda item: item[1][0]):
            row = {**ROW, "uid": "1000"} if "FROM users" in query[0] else ROW
            if "files" in query[0]:
                print(query[0])
            await one.batch(query_id, [row], change="Add", window=(0, 7))
            if "_events" not in query[0]:
                await one.batch(query_id, [{"pid": 1}], change="Delete", window=(7, 8))
        await one.settled()


asyncio.run(main())
# @TEST-END-FILE
