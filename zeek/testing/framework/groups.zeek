# @TEST-DOC: Groups: by name in any case, and by subnet, at start and at run time.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: ! grep -i error zeek.err

redef ZeekAgent::attribute_connections = F;
redef ZeekAgent::subnet_groups += { [10.1.0.0/16] = set("lab") };

event row(ctx: ZeekAgent::Context, columns: ZeekAgent_Users::Columns)
	{
	if ( ctx?$cookie && ctx$cookie == "join" )
		ZeekAgent::join_group(10.2.0.0/16, "late");
	else if ( ctx?$cookie )
		ZeekAgent::leave_group(10.1.0.0/16, "lab");
	}

event zeek_init()
	{
	ZeekAgent::query([$sql_stmt="SELECT Web", $event_=row, $schedule_=1sec], ZeekAgent::Group, "Web");
	ZeekAgent::query([$sql_stmt="SELECT lab", $event_=row, $schedule_=1sec], ZeekAgent::Group, "lab");
	ZeekAgent::query([$sql_stmt="SELECT late", $event_=row, $schedule_=1sec], ZeekAgent::Group, "late");
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import Agent, agent, string, vector, NONE


def shown(of: Agent) -> str:
    statements = {query[0] for query in of.queries.values()} & {"SELECT Web", "SELECT lab", "SELECT late"}
    return f"{of.id}: {sorted(statements)}"


async def say(of: Agent, cookie: str) -> None:
    await of.publish("row", of.context(None, cookie=cookie), vector(*[NONE] * 10))
    await of.settled()


async def main() -> None:
    async with agent("H1", ("all", "Web")) as verbatim, agent("H2", ("all", "web")) as lower, agent("H3") as other:
        await verbatim.hello()
        await lower.hello(addresses=("10.1.0.1",))
        await other.hello(addresses=("10.2.0.1", "10.1.2.3"))
        for each in (verbatim, lower, other):
            await each.settled()
            print(shown(each))
        await say(other, "join")
        print("after joining,", shown(other))
        await say(other, "leave")
        print("after leaving,", shown(other))


asyncio.run(main())
# @TEST-END-FILE
