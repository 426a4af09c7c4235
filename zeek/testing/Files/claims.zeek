##! Agents and their claims without agents, for tests that read traces.

module Test;

export {
	## Raised when the trace begins: the time to bring in agents and what they claim then.
	global begin: event();

	## An agent that is there, by the name of its host, with its tables.
	global join: function(agent_id: string, addresses: set[addr], tables: set[string] &default=set());

	## A flow's end. Ends are as in ``10.0.0.1:1000/tcp``; the process is named as well as numbered. Times are those of
	## the trace. The socket's cookie is the process id unless it is given.
	global claim: function(agent_id: string, process: string, pid: count, local_h: addr, local_p: port, remote_h: addr,
	    remote_p: port, at: double, state: string &default="established", direction: string &default="outbound",
	    cookie: count &default=0);

	## A claim that comes when the trace is at a time.
	global claim_later: event(agent_id: string, process: string, pid: count, local_h: addr, local_p: port, remote_h: addr,
	    remote_p: port, at: double, state: string, direction: string, cookie: count);
}

const epoch = double_to_time(1700000000.0);

function join(agent_id: string, addresses: set[addr], tables: set[string])
	{
	local ctx = ZeekAgent::Context($agent_id=agent_id, $host_time=current_time(), $query_id="hello");
	local hello = ZeekAgentAPI::AgentHelloV1($agent_id=agent_id, $instance_id="I", $hostname=to_lower(agent_id),
	    $addresses=addresses, $tables=tables);
	event ZeekAgentAPI::agent_hello_v1(ctx, hello);
	}

function claim(agent_id: string, process: string, pid: count, local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, at: double, state: string, direction: string, cookie: count)
	{
	local row = table(["process"] = process, ["exe"] = "/bin/" + process, ["local_addr"] = cat(local_h),
	    ["remote_addr"] = cat(remote_h), ["state"] = state, ["direction"] = direction, ["entity_id"] = fmt("E-%d", pid));
	local text = to_json(row);
	local numbers = fmt("{\"time_\": %.6f, \"pid\": %d, \"uid\": 1000, \"cookie\": %d, \"protocol\": %d, \"local_port\": %d, \"remote_port\": %d, ",
	    time_to_double(epoch) + at, pid, cookie == 0 ? pid : cookie, get_port_transport_proto(local_p) == tcp ? 6 : 17, local_p, remote_p);
	event ZeekAgent::claim_rows(agent_id, epoch, "[" + numbers + text[1:] + "]");
	}

event claim_later(agent_id: string, process: string, pid: count, local_h: addr, local_p: port, remote_h: addr,
    remote_p: port, at: double, state: string, direction: string, cookie: count)
	{
	claim(agent_id, process, pid, local_h, local_p, remote_h, remote_p, at, state, direction, cookie);
	}

event network_time_init()
	{
	event Test::begin();
	}
