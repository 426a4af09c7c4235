"""`python -m zeek_agent` is the program `zeek-agent`."""

from zeek_agent.cli import main

main()
