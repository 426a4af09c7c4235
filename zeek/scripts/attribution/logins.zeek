##! Adds the user who logged in over a connection to ``conn.log``, as reported by the agent on the responder's host.

@load base/protocols/conn
@load ../table/logins
@load ./conn
@load ./owners

module ZeekAgent;

export {
	## Maximum number of logins that are remembered for connections that have not ended.
	const max_logins = 100000 &redef;

	## How long a login is remembered if Zeek does not see the end of its connection.
	const login_timeout = 7day &redef;

	## Forwards a login to the workers.
	global connection_login: event(agent_id: string, remote_h: addr,
	    remote_p: count, user: string, pid: count);
}

type LoginKey: record {
	hid: string;
	remote_h: addr;
	remote_p: count;
};

type Login: record {
	user: string;
	pid: count;
};

global logins: table[LoginKey] of Login &create_expire=login_timeout;

event ZeekAgent::connection_login(agent_id: string, remote_h: addr,
    remote_p: count, user: string, pid: count)
	{
	if ( |logins| < max_logins )
		logins[LoginKey($hid=agent_id, $remote_h=remote_h, $remote_p=remote_p)] =
		    Login($user=user, $pid=pid);
	}

event ZeekAgent_Logins::log_logins(rec: ZeekAgent_Logins::Info)
	{
	local row = rec$columns;

	if ( ! row?$action
	    || row$action != "login"
	    || ! row?$remote_addr
	    || ! row?$remote_port
	    || ! row?$user )
		return;

	# Any local user of the host could have written it.
	if ( ! row?$verified || ! row$verified )
		return;

	local pid = row?$pid ? row$pid : 0;
	event ZeekAgent::connection_login(rec$hid, row$remote_addr, row$remote_port,
	    row$user, pid);

	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::worker_topic, connection_login, rec$hid,
		    row$remote_addr, row$remote_port, row$user, pid);
	}

event connection_state_remove(c: connection) &priority=-1
	{
	if ( ! attribute_connections || ! c?$resp_process )
		return;

	local key = LoginKey($hid=c$resp_process$hid, $remote_h=c$id$orig_h,
	    $remote_p=port_to_count(c$id$orig_p));

	if ( key !in logins )
		return;

	c$conn$login_user = logins[key]$user;

	if ( logins[key]$pid != 0 )
		c$conn$login_pid = logins[key]$pid;

	delete logins[key];
	}
