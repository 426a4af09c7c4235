# @TEST-DOC: An agent that connects again and again without answering has each question once; another agent hears nothing of its questions.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py ${PACKAGE}/attribution/known-services.zeek %INPUT
# @TEST-EXEC: btest-diff agents.out

type Names: vector of record { name: string &optional; };

event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	if ( agent_id == "H-flapping" )
		when [agent_id] ( local answer = ZeekAgent::ask(agent_id, "SELECT late", Names, 1sec) )
			{
			}
	}

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent("H-other") as other, agent("H-flapping") as flapping:
        await other.hello()
        await other.settled()
        for n in range(4):
            await flapping.hello(f"hello_{n}")
            await flapping.settled(1.5)
            once = [query[0] for query in flapping.queries.values() if query[1] is None]
            print(len(once), len(set(once)))
        received = []
        try:
            while True:
                received.append((await other.receive(0.5))[0].removeprefix("ZeekAgentAPI::"))
        except TimeoutError:
            print("cancelled for the other:", received.count("cancel_query_v1"))


asyncio.run(main())
# @TEST-END-FILE
