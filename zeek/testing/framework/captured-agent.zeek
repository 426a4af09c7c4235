# @TEST-DOC: What an agent of version 2.3 sent to the stock package gives the same lines in the logs as it gave there.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: bash compare.sh zeek-agent type_ hid hostname version uptime platform os_name
# @TEST-EXEC: bash compare.sh zeek-agent-processes hid host change name pid uid gid ppid priority startup
# @TEST-EXEC: bash compare.sh zeek-agent-sockets hid host change pid process family protocol local_addr local_port remote_addr remote_port state
# @TEST-EXEC: bash compare.sh zeek-agent-files hid host change path type_ uid gid mode mtime size
# @TEST-EXEC: ! grep -i error zeek.err

redef ZeekAgent::attribute_connections = F;

# @TEST-START-FILE compare.sh
set -e
name=$1
shift
zeek-cut "$@" < "$CAPTURES/zeek-logs/$name.log" > expected.$name
zeek-cut "$@" < $name.log > found.$name
test -s expected.$name
diff expected.$name found.$name
# @TEST-END-FILE

# @TEST-START-FILE scenario.py
import asyncio
import json
import os
from pathlib import Path

from agents import agent

CAPTURED_INSTANCE = "zeek_LYLwI26Jm7LXIKG77"


async def main() -> None:
    records = map(json.loads, (Path(os.environ["CAPTURES"]) / "zeek-9.1-package-2.4-agent-2.3.jsonl").read_text().splitlines())
    frames = [record["message"] for record in records if record["from"] == "agent" and "message" in record]
    async with agent("H6sCElvPqe0P8W73ADijZGY") as captured:
        await captured.send(frames[1])
        await captured.expect("zeek_hello_v1")
        await captured.settled()
        assert all("rows_v1" not in query[3][0] for query in captured.queries.values()), "it knows no batches"
        assert any(query[0].endswith("FROM users") for query in captured.queries.values())
        for frame in frames[2:]:
            await captured.send(frame.replace(CAPTURED_INSTANCE, captured.instance))
        await captured.settled()


asyncio.run(main())
# @TEST-END-FILE
