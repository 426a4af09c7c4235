# @TEST-DOC: A question to one agent can be waited for: rows in several batches, no rows, no answer, an error, no agent.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff zeek.out
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: ! grep 'no such table\|too late' zeek.err
# @TEST-EXEC: grep 'reports: of another query' zeek.err

redef ZeekAgent::attribute_connections = F;
redef ZeekAgent::allowed_tables = { "users" };

type User: record {
	name: string &optional;
};

type Users: vector of User;

function show(label: string, answer: ZeekAgent::Answer)
	{
	if ( answer?$rows )
		print label, answer$rows as Users;
	else
		print label, answer$error;
	}

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	when [agent_id] ( local all = ZeekAgent::ask(agent_id, "SELECT all", Users) )
		{
		show("all", all);
		}

	when [agent_id] ( local nobody = ZeekAgent::ask(agent_id, "SELECT nobody", Users) )
		{
		show("nobody", nobody);
		}

	when [agent_id] ( local late = ZeekAgent::ask(agent_id, "SELECT late", Users, 1sec) )
		{
		show("late", late);
		}

	when [agent_id] ( local wrong = ZeekAgent::ask(agent_id, "SELECT wrong", Users) )
		{
		show("wrong", wrong);
		}

	# What is known at once does not wait.
	when ( local unknown = ZeekAgent::ask("H-unknown", "SELECT all", Users, 1hr) )
		{
		show("unknown", unknown);
		}

	when [agent_id] ( local forbidden = ZeekAgent::ask(agent_id, "SELECT name FROM processes", Users, 1hr) )
		{
		show("forbidden", forbidden);
		}

	when [agent_id] ( local foreign = ZeekAgent::ask(agent_id, "SELECT all", Users, 1hr, "osquery") )
		{
		show("foreign", foreign);
		}

	when [agent_id] ( local unfit = ZeekAgent::ask(agent_id, "SELECT unfit", Users) )
		{
		print "unfit", sub(unfit$error, /:.*/, "");
		}
	}

event ZeekAgent::query_done(query_id: string, agent_id: string)
	{
	print "done", agent_id;
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent, string


async def main() -> None:
    async with agent() as one:
        await one.hello()
        names = ("all", "nobody", "late", "wrong", "unfit")
        everyone, nobody, late, wrong, unfit = [await one.query(f"SELECT {name}") for name in names]
        await one.publish("ZeekAgentAPI::agent_error_v1", one.context(wrong), string("no such table"))
        await one.expect("cancel_query_v1")
        await one.batch(everyone, [{"name": "ann"}, {"name": "bob, [x]"}], last=False)
        await one.batch(everyone, [{"name": "cy"}], index=1)
        await one.settled()
        await one.batch(nobody, [])
        print("ended:", (await one.expect("cancel_query_v1"))[1] == late)
        await one.publish("ZeekAgentAPI::agent_error_v1", one.context(late), string("too late"))
        await one.publish("ZeekAgentAPI::agent_error_v1", one.context("q"), string("of another query"))
        await one.batch(unfit, [{"name": ["x"]}])
        await one.settled()


asyncio.run(main())
# @TEST-END-FILE
