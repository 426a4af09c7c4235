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

	## Forwards a login, with its time by Zeek's clock, to the workers.
	global connection_login: event(agent_id: string, at: time, remote_h: addr,
	    remote_p: count, user: string, pid: count);
}

type LoginKey: record {
	hid: string;
	remote_h: addr;
	remote_p: count;
};

type Login: record {
	at: time;
	user: string;
	pid: count;
};

global logins: table[LoginKey] of Login &create_expire=login_timeout;

event ZeekAgent::connection_login(agent_id: string, at: time, remote_h: addr,
    remote_p: count, user: string, pid: count)
	{
	local key = LoginKey($hid=agent_id, $remote_h=remote_h, $remote_p=remote_p);

	if ( key in logins || |logins| < max_logins )
		logins[key] = Login($at=at, $user=user, $pid=pid);
	}

event ZeekAgent_Logins::log_logins(rec: ZeekAgent_Logins::Info)
	{
	local row = rec$columns;

	if ( ! row?$action
	    || row$action != "login"
	    || ! row?$time_
	    || ! row?$remote_addr
	    || ! row?$remote_port
	    || ! row?$user )
		return;

	# Any local user of the host could have written it.
	if ( ! row?$verified || ! row$verified )
		return;

	local pid = row?$pid ? row$pid : 0;
	local offset = rec$hid in agents ? agents[rec$hid]$clock_offset : 0sec;
	local at = row$time_ + offset;
	event ZeekAgent::connection_login(rec$hid, at, row$remote_addr,
	    row$remote_port, row$user, pid);

	if ( Cluster::is_enabled() )
		Cluster::publish(Cluster::worker_topic, connection_login, rec$hid, at,
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

	local login = logins[key];

	# A login over a later connection of the same ports.
	if ( login$at > c$start_time + c$duration + claim_slack )
		return;

	delete logins[key];

	# A login over an earlier connection, which was reported after that had been logged.
	if ( login$at < c$start_time - claim_slack )
		return;

	c$conn$login_user = login$user;

	if ( login$pid != 0 )
		c$conn$login_pid = login$pid;
	}
