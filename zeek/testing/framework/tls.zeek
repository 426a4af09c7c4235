# @TEST-DOC: The port speaks TLS where a certificate is given.
#
# @TEST-REQUIRES: python3 -c 'import websockets'
#
# @TEST-REQUIRES: which openssl
#
# @TEST-PORT: WS_PORT
# @TEST-PORT: XPUB_PORT
# @TEST-PORT: XSUB_PORT
#
# @TEST-EXEC: openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem
# @TEST-EXEC: ${SCRIPTS}/talk scenario.py %INPUT
# @TEST-EXEC: btest-diff agents.out
# @TEST-EXEC: grep -q 'listening for agents at wss://127.0.0.1' zeek.err

redef ZeekAgent::listen_tls = Cluster::WebSocketTLSOptions($cert_file="cert.pem", $key_file="key.pem");

# @TEST-START-FILE scenario.py
import asyncio
import ssl

from agents import agent


async def main() -> None:
    trusted = ssl.create_default_context(cafile="cert.pem")
    async with agent(tls=trusted) as one:
        await one.hello()
        print("heard:", (await one.expect("zeek_hello_v1"))[1][3])


asyncio.run(main())
# @TEST-END-FILE
