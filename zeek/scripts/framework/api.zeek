##! The wire format between Zeek and agents: events and the records they carry, by position.

@load ./types

module ZeekAgentAPI;

export {
	## An agent's description of itself, from its table ``zeek_agent``, for any version.
	type AgentHelloV1: record {
		agent_id: string;
		instance_id: string;
		hostname: string &optional;
		addresses: set[addr] &optional;
		platform: string &optional;
		os_name: string &optional;
		kernel_name: string &optional;
		kernel_version: string &optional;
		kernel_arch: string &optional;
		agent_version: count &optional;
		uptime: interval &optional;
		tables: set[string] &optional;
		## Features that the agent supports beyond version 1 of the API.
		features: set[string] &optional;
		## The version of Broker in agents before 2.4.
		broker: string &optional;
	};

	## The hello as sent by agents that support only version 1.
	type AgentHelloPlain: record {
		agent_id: string;
		instance_id: string;
		hostname: string &optional;
		addresses: set[addr] &optional;
		platform: string &optional;
		os_name: string &optional;
		kernel_name: string &optional;
		kernel_version: string &optional;
		kernel_arch: string &optional;
		agent_version: count &optional;
		uptime: interval &optional;
		tables: set[string] &optional;
	};

	## The same of agents before 2.4.
	type AgentHelloBroker: record {
		agent_id: string;
		instance_id: string;
		hostname: string &optional;
		addresses: set[addr] &optional;
		platform: string &optional;
		os_name: string &optional;
		kernel_name: string &optional;
		kernel_version: string &optional;
		kernel_arch: string &optional;
		agent_version: count &optional;
		broker: string &optional;
		uptime: interval &optional;
		tables: set[string] &optional;
	};

	## The same for agents that support more.
	type AgentHelloFeatures: record {
		agent_id: string;
		instance_id: string;
		hostname: string &optional;
		addresses: set[addr] &optional;
		platform: string &optional;
		os_name: string &optional;
		kernel_name: string &optional;
		kernel_version: string &optional;
		kernel_arch: string &optional;
		agent_version: count &optional;
		uptime: interval &optional;
		tables: set[string] &optional;
		features: set[string] &optional;
	};

	## Zeek's description of itself.
	type ZeekHelloV1: record {
		version_string: string;
		version_number: count;
		## Version of this package, empty if unknown.
		package_version: string;
		## Features that this package supports beyond version 1 of the API.
		features: set[string] &default=set("batches", "via", "left");
	};

	## A query as agents read it: exactly these fields.
	type QueryV1: record {
		sql_stmt: string;
		schedule_: interval &optional;
		subscription: ZeekAgent::SubscriptionType;
		event_: any;
		cookie: string &optional;
		requires_tables: set[string];
		if_missing_tables: set[string];
	};

	## The same for agents that announce the feature ``dialects``, with the statement's dialect.
	type QueryDialectV1: record {
		sql_stmt: string;
		schedule_: interval &optional;
		subscription: ZeekAgent::SubscriptionType;
		event_: any;
		cookie: string &optional;
		requires_tables: set[string];
		if_missing_tables: set[string];
		dialect: string &optional;
	};

	## An agent's hello message. ``columns`` is one of the hello records above, by the agent's version: whoever
	## handles this declares it as ``any``. See :zeek:see:`ZeekAgent::agent_joined` for something simpler.
	global agent_hello_v1: event(ctx: ZeekAgent::Context, columns: any);

	## An agent is shutting down.
	global agent_shutdown_v1: event(ctx: ZeekAgent::Context);

	## An agent is gone that was behind a gateway, which has not heard from it, or lost its session.
	global agent_left_v1: event(ctx: ZeekAgent::Context, gateway: string);

	## An agent reports an error.
	global agent_error_v1: event(ctx: ZeekAgent::Context, msg: string);

	## Rows of one change for a query, as a JSON array of objects; keys are column names, nulls are left out.
	global rows_v1: event(ctx: ZeekAgent::Context, batch: Batch, rows: string);

	## The rows of a batch, and all of the result before it, were handled.
	global rows_ack_v1: event(zeek_instance: string, query_id: string,
	    stream: string, high: count, index: count);

	## Zeek's hello message.
	global zeek_hello_v1: event(zeek_instance: string, info: ZeekHelloV1);

	## This Zeek is shutting down.
	global zeek_shutdown_v1: event(zeek_instance: string);

	## Installs a query on an agent. ``query`` is one of the two records above.
	global install_query_v1: event(zeek_instance: string, query_id: string,
	    query: any);

	## Cancels a query on an agent.
	global cancel_query_v1: event(zeek_instance: string, query_id: string);
}
