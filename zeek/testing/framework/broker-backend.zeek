# @TEST-DOC: The same over Broker, the backend of a Zeek 8.0 that runs alone.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-REQUIRES: zeek -a frameworks/cluster/backend/broker
#
# @TEST-PORT: WS_PORT
#
# @TEST-EXEC: BACKEND=frameworks/cluster/backend/broker ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: zeek-cut -m hid name pid exe < zeek-agent-processes.log > processes
# @TEST-EXEC: btest-diff processes

redef ZeekAgent::attribute_connections = F;

# @TEST-START-FILE scenario.py
import asyncio

from agents import agent


async def main() -> None:
    async with agent() as one:
        await one.hello()
        query_id = await one.query(lambda sql: sql.endswith("FROM processes"))
        await one.batch(query_id, [{"name": "init", "pid": 1, "exe": "/sbin/init"}])
        print("acknowledged", (await one.expect("rows_ack_v1"))[2:])


asyncio.run(main())
# @TEST-END-FILE
