##! Types of the public API.

@load ./api-batch

module ZeekAgent;

export {
	## How an agent reports the results of a query that runs on a schedule.
	type SubscriptionType: enum {
		## All rows of each run.
		Snapshots,
		## What came and went since the last run; the first run reports nothing.
		Differences,
		## All rows once, then those that are new or gone.
		SnapshotPlusDifferences,
		## New rows of an event table; what was there before the query is not reported.
		Events,
	};

	## Change of a row.
	type ChangeType: enum {
		Add,
		Delete,
	};

	## Whether a query goes to a group of agents or to one agent.
	type Scope: enum {
		Group,
		Host,
	};

	## Metadata of each result.
	type Context: record {
		## Id of the agent.
		agent_id: string;
		## Time of the result, by the agent's clock.
		host_time: time;
		## Id of the query that the result belongs to.
		query_id: string &optional;
		## Change of the row; unset for rows of a snapshot.
		change: ChangeType &optional;
		## The query's cookie.
		cookie: string &optional;
	};

	## A query for agents.
	##
	## Results are delivered in one or both of two ways. Any agent raises ``event_`` once for each row; that is not
	## acknowledged, so rows can be lost with a connection. Agents that support batches call ``on_rows`` with up to a
	## hundred rows instead, acknowledge them, and send again what was not. With both given, each agent uses the best
	## that it can.
	type Query: record {
		## The statement.
		sql_stmt: string;
		## The statement for agents that support batches, if it differs.
		batch_stmt: string &optional;
		## How often to run it; unset or zero means once.
		schedule_: interval &optional;
		## How to report its results.
		subscription: SubscriptionType &default=Snapshots;
		## The event to raise for each row, as ``event(ctx: ZeekAgent::Context, columns: R)``. The record ``R`` has a
		## field for each column, in the statement's order.
		event_: any &optional;
		## The dialect of the statement: with ``osquery``, names of osquery's tables mean those with osquery's columns.
		## Agents that do not support dialects do not get the query, and one that does not know this one reports an error.
		dialect: string &optional;
		## Text that is returned with each result.
		cookie: string &optional;
		## Tables without which an agent does not run the query.
		requires_tables: set[string] &default=set();
		## Tables with which an agent does not run the query.
		if_missing_tables: set[string] &default=set();
		## The type of the rows passed to ``on_rows``: a type ``vector of R``, where the record ``R`` has an optional field for each column,
		## by name. When unset it gets the rows as a JSON string.
		row_type: any &optional;
		## Called with each batch of rows, which are of the type ``row_type``.
		on_rows: function(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
		    &optional;
	};
}
