# @TEST-DOC: A script that is written from a query pack logs rows of agents that know batches, and of those that do not.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
# @TEST-REQUIRES: zeek-agent pack zeek --help
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: zeek-agent pack zeek pack.toml --output written.zeek
# @TEST-EXEC: ln -s ${PACKAGE} zeek-agent
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py written.zeek %INPUT
# @TEST-EXEC: btest-diff open-files.log
# @TEST-EXEC: btest-diff requests.log
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: sort zeek.out > events
# @TEST-EXEC: btest-diff events
# @TEST-EXEC: test $(grep -c "row for open-files from .* has no path" zeek.err) = 2

redef ZeekAgent_OpenFiles::query_interval = 3sec;
redef ZeekAgent::attribute_connections = F;

event ZeekAgent_OpenFiles::log_open_files(rec: ZeekAgent_OpenFiles::Info)
	{
	print "logged", rec$columns$path;
	}

hook ZeekAgent_OpenFiles::log_policy(rec: any, id: Log::ID, filter: Log::Filter)
	{
	if ( ( rec as ZeekAgent_OpenFiles::Info )$columns$path == "/secret" )
		break;
	}

# @TEST-START-FILE pack.toml
[logs.open-files]
fields = [
  { name = "path", type = "string", optional = false },
  { name = "type", type = "string" },
  { name = "size", type = "count" },
  { name = "mtime", type = "time", only = "zeek" },
]

[[queries]]
log = "open-files"
sql = "SELECT path, type, size FROM files_list('/x')"
batch_sql = "SELECT path, type, size, mtime FROM files_list('/x')"

[logs.requests]
change = false
fields = [
  { name = "time", type = "time" },
  { name = "port", type = "port" },
  { name = "took", type = "interval" },
  { name = "ok", type = "bool" },
  { name = "peers", type = "set[addr]" },
  { name = "sizes", type = "vector[count]" },
  { name = "head.name", type = "string" },
  { name = "head.value", type = "int" },
  { name = "seq", type = "count" },
]

[[queries]]
log = "requests"
sql = """
SELECT time, '' AS "port:port", duration AS took, '' AS "ok:bool", '' AS "peers:set[address]", '' AS "sizes:vector[count]",
  '' AS "head:record", seq FROM processes_events"""
subscription = "Events"
schedule = 0
# @TEST-END-FILE

# @TEST-START-FILE scenario.py
import asyncio

from agents import NONE, address, agent, count, set_of, string, timespan, timestamp, vector

FILES, REQUESTS = "ZeekAgent_OpenFiles::query_result", "ZeekAgent_Requests::query_result"


def ours(connected, table):
    return next((each, query) for each, query in connected.queries.items() if table in query[0])


async def main() -> None:
    async with agent("HOld") as old, agent("HNew") as new:
        await old.hello(hostname="old", features=None)
        await new.hello(hostname="new", connection="hello_2")
        await old.settled()
        await new.settled()
        for connected in (old, new):
            for sql, schedule, subscription, event, *_ in sorted(connected.queries.values(), key=str):
                if "/x" in sql or "port:port" in sql:
                    print(connected.id, " ".join(sql.split()), schedule, subscription, event)
        files, _ = ours(old, "files_list('/x')")
        await old.row(files, FILES, string("/a"), string("file"), count(7), change="Add")
        await old.row(files, FILES, string("/b"), NONE, NONE, change="Delete")
        await old.row(files, FILES, NONE, NONE, NONE, change="Delete")
        requests, _ = ours(old, "port:port")
        port, yes = ({"@data-type": kind, "data": data} for kind, data in (("port", "80/tcp"), ("boolean", True)))
        peers, sizes = set_of(address("fd00::1")), vector(count(3), count(1))
        head = vector(string("a"), {"@data-type": "integer", "data": -1})
        await old.row(requests, REQUESTS, timestamp(1600000000.5), port, timespan("1500ms"), yes, peers, sizes, head, count(4))
        await old.row(requests, REQUESTS, *[NONE] * 8)
        await old.settled(2)
        files, _ = ours(new, "files_list('/x')")
        rows = [{"path": "/c", "type_": "dir", "size": 9, "mtime": 1600000000.25}, {}, {"path": "/secret"}, {"path": "/d"}]
        await new.batch(files, rows, change="Add")
        requests, _ = ours(new, "port:port")
        row = {"time_": 1600000000.5, "port_": "80/tcp", "took": 1.5, "ok": True, "peers": ["fd00::1"]}
        row |= {"sizes": [3, 1], "head": {"name": "a", "value": -1}, "seq": 4}
        await new.batch(requests, [row, {}], window=(0, 7))
        await old.settled()
        await new.settled()


asyncio.run(main())
# @TEST-END-FILE
