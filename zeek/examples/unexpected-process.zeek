##! A notice when a service's port is used by a process that is not known to use it.

@load base/frameworks/notice
@load zeek-agent

module UnexpectedProcess;

export {
	redef enum Notice::Type += {
		## A connection to a service comes from a process that is not one of its clients.
		Unexpected_Client,
	};

	## The names of the processes that use a service, by its port; connections to other ports raise no notice.
	const clients: table[port] of set[string] = {
		[22/tcp] = set("ssh", "scp", "sftp", "git"),
		[25/tcp] = set("postfix", "smtp", "sendmail", "exim4"),
	} &redef;

	## Further ones, each as ``22/tcp rsync``. Unlike a table, a file of the configuration framework can set this.
	option more_clients: set[string] = {};
}

event ZeekAgent::connection_attributed(c: connection, is_orig: bool,
    process: ZeekAgent::Process)
	{
	if ( ! is_orig || c$id$resp_p !in clients || ! process?$process )
		return;

	if ( process$process in clients[c$id$resp_p]
	    || fmt("%s %s", c$id$resp_p, process$process) in more_clients )
		return;

	NOTICE(Notice::Info($note=Unexpected_Client, $conn=c, $msg=fmt(
	    "%s (%s) of %s uses port %s", process?$exe ? process$exe :
	    process$process, process?$user ? process$user : "unknown user",
	    process$host, c$id$resp_p), $identifier=fmt("%s-%s-%s", process$hid,
	    process$process, c$id$resp_p)));
	}
