# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

@load ./dns
@load ./file-events
@load ./files
@load ./gaps
@load ./listening-ports
@load ./logins
@load ./process-events
@load ./processes
@load ./setuid-files
@load ./socket-events
@load ./sockets
@load ./sources
@load ./ssh
@load ./system-logs
@load ./users
