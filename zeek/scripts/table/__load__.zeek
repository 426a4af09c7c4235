# Written by `make docs` from src/zeek_agent/collector/default.toml: edit that.

@load ./files
@load ./listening-ports
@load ./logins
@load ./process-events
@load ./processes
@load ./socket-events
@load ./sockets
@load ./ssh
@load ./system-logs
@load ./users
