# @TEST-DOC: Options that change at run time reach agents: schedules, subscriptions, watched paths, groups and allowed tables.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: grep -o 'Zeek Agent: ZeekAgent.*' zeek.err | sort > errors
# @TEST-EXEC: btest-diff errors
# @TEST-EXEC: grep -o '^[pz]e[nr].*' zeek.out > pending
# @TEST-EXEC: btest-diff pending
# @TEST-EXEC: grep permitted zeek-agent-processes.log
# @TEST-EXEC: ! grep 'under way' zeek-agent-processes.log

redef ZeekAgent_Files::enabled = F;
redef exit_only_after_terminate = T;

type User: record {
	name: string &optional;
};

type Users: vector of User;

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	switch ( ctx$cookie )
		{
		case "interval":
			Config::set_value("ZeekAgent_Users::query_interval", 7sec);
			break;
		case "zero":
			Config::set_value("ZeekAgent_Users::query_interval", 0sec);
			Config::set_value("ZeekAgent::hello_interval", 0sec);
			Config::set_value("ZeekAgent::conn_fields", set("exe", "command"));
			print "zero", ZeekAgent::hello_interval;
			break;
		case "subscription":
			Config::set_value("ZeekAgent_Users::subscription", ZeekAgent::Snapshots);
			break;
		case "claims":
			Config::set_value("ZeekAgent::claim_interval", 3sec);
			Config::set_value("ZeekAgent::user_interval", 4sec);
			Config::set_value("ZeekAgent_SSH::query_interval", 9sec);
			break;
		case "paths":
			Config::set_value("ZeekAgent_SSH::config_paths_to_watch", set("/etc/other"));
			break;
		case "group":
			Config::set_value("ZeekAgent::subnet_groups", table([10.1.0.0/16] = set("lab")));
			break;
		case "ungroup":
			Config::set_value("ZeekAgent::subnet_groups", table([10.2.0.0/16] = set("lab")));
			break;
		case "narrow":
			Config::set_value("ZeekAgent::allowed_tables", set("users"));
			break;
		case "widen":
			Config::set_value("ZeekAgent::allowed_tables", set("users", "processes"));
			break;
		}
	}

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	when ( local answer = ZeekAgent::ask("H1", "SELECT pending FROM sockets", Users, 1hr) )
		{
		print "pending", answer$error;
		}
	}

function count_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	print "rows", rows;
	}

event zeek_init()
	{
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT lab", $on_rows=count_rows, $schedule_=1sec), ZeekAgent::Group, "lab");
	}

# @TEST-START-FILE scenario.py
import asyncio
import re

from agents import NONE, Agent, agent, count, string, vector


async def say(of: Agent, cookie: str) -> None:
    await of.publish("row", of.context(None, cookie=cookie), vector(*[NONE] * 10))
    await of.settled(1.5)


def show(label: str, of: Agent, text: str) -> None:
    found = sorted({(query[0][:12], str(query[1]), query[2]) for query in of.queries.values() if text in query[0]})
    print(label, found)


async def row(of: Agent, query_id: str, process: str) -> None:
    cells = (string(process), count(1), count(0), count(0), count(0), NONE, NONE)
    await of.row(query_id, "ZeekAgent_Processes::query_result", *cells)


one_tables = ("files_columns", "processes", "sockets", "sockets_events", "users")


async def main() -> None:
    async with agent("H1") as one:
        await one.hello(addresses=("10.1.0.1",), tables=one_tables)
        await one.settled(1.5)
        for label in ("start", "interval", "zero", "subscription"):
            if label != "start":
                await say(one, label)
            show(label, one, "groups")
        await say(one, "claims")
        show("claims", one, "FROM sockets_events WHERE remote_addr IS NOT NULL AND pid IS NOT NULL")
        show("claims", one, "SELECT uid, name FROM users")
        await say(one, "paths")
        print("paths", sorted(re.findall("files_columns\\('[^']*'", " ".join(query[0] for query in one.queries.values()))))
        for label in ("group", "ungroup"):
            await say(one, label)
            show(label, one, "SELECT lab")
        forbidden = await one.query(lambda sql: sql.endswith("FROM processes"))
        for label in ("narrow", "widen"):
            if label == "narrow":
                await row(one, forbidden, "permitted")
                await one.publish("row", one.context(None, cookie=label), vector(*[NONE] * 10))
                await one.batch(forbidden, [{"name": "under way", "pid": 1, "exe": "/bin/late"}])
                await row(one, forbidden, "under way")
                await one.settled(1.5)
                await row(one, forbidden, "late under way")
            else:
                await say(one, label)
            statements = " ".join(query[0] for query in one.queries.values())
            print(label, [table for table in one_tables if re.search(rf"FROM {table}\b", statements)])


asyncio.run(main())
# @TEST-END-FILE
