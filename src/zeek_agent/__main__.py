"""`python -m zeek_agent` is the program `zeek-agent`."""

from zeek_agent.cli.program import main

main()
