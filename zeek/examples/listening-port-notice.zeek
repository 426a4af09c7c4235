##! A notice when a process begins to listen at a port that its host did not have before.

@load base/frameworks/notice
@load zeek-agent

module NewListener;

export {
	redef enum Notice::Type += {
		## A process listens at a port.
		New_Listening_Port,
	};

	## Ports that may appear anywhere.
	option expected_ports: set[count] = {
		22,
		80,
		443
	};

	## A row of the statement.
	type Listener: record {
		process: string &optional;
		exe: string &optional;
		protocol: count &optional;
		address: addr &optional;
		port_: count &optional;
	};

	type Listeners: vector of Listener;
}

function take(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	# The first report of an agent, a snapshot, is what was there before.
	if ( ! ctx?$change || ctx$change != ZeekAgent::Add )
		return;

	for ( _, row in rows as Listeners )
		{
		if ( ! row?$port_ || row$port_ in expected_ports )
			next;

		local message = fmt("%s listens at port %d of %s", row?$exe ? row$exe :
		    "a process", row$port_, ZeekAgent::hostname(ctx));
		NOTICE(Notice::Info($note=New_Listening_Port, $msg=message, $src=row$address,
		    $identifier=fmt("%s-%d", ctx$agent_id, row$port_)));
		}
	}

event zeek_init()
	{
	ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT process, exe, protocol, address, port AS port_ FROM listening_ports",
	    $row_type=Listeners, $on_rows=take, $schedule_=5sec,
	    $subscription=ZeekAgent::SnapshotPlusDifferences));
	}
