##! Batches of rows: taken once each, then acknowledged.
##!
##! An agent sends a result again, in the same batches, until it is acknowledged; over new connections and restarts of
##! its own, too. What was handled is told by the event store's id and numbers, so that no event is handled twice while
##! this Zeek lives. Differences between snapshots have no numbers: they are handled each time they come.

@load ./agents
@load ./queries

module ZeekAgent;

export {
	## Raised after the last batch of a query that runs once, for each agent.
	global query_done: event(query_id: string, agent_id: string);

	## How long it is remembered what an agent delivered for a query.
	const stream_lifetime = 1day &redef;
}

type Stream: record {
	store: string;
	## The result that is under way.
	low: count;
	high: count;
	## Its next batch.
	index: count &default=0;
	## Events up to this number were handled.
	done: count &default=0;
};

global streams: table[string, string] of Stream &write_expire=stream_lifetime;

# Takes note of a batch; says whether it is new.
function is_new(agent_id: string, batch: ZeekAgentAPI::Batch): bool
	{
	if ( batch$high == 0 )
		return T;

	local stream = Stream($store=batch$store, $low=batch$low, $high=batch$high);

	if ( [agent_id, batch$stream] in streams )
		{
		local known = streams[agent_id, batch$stream];

		if ( known$store == batch$store )
			{
			stream$done = known$done;

			if ( known$low == batch$low && known$high == batch$high )
				stream$index = known$index;
			}
		}

	if ( batch$high <= stream$done || batch$index < stream$index )
		return F;

	stream$index = batch$index + 1;

	if ( batch$last )
		stream$done = batch$high;

	streams[agent_id, batch$stream] = stream;
	return T;
	}

function call_with_rows(q: Query, ctx: Context, batch: ZeekAgentAPI::Batch,
    rows: string)
	{
	if ( ! q?$row_type )
		{
		q$on_rows(ctx, batch, rows);
		return;
		}

	local parsed = from_json(rows, q$row_type);

	if ( parsed$valid )
		q$on_rows(ctx, batch, parsed$v);
	else
		Reporter::error(fmt("Zeek Agent: rows of agent %s do not fit the query's row type: %s",
		    ctx$agent_id, q$sql_stmt));
	}

event ZeekAgentAPI::rows_v1(ctx: Context, batch: ZeekAgentAPI::Batch,
    rows: string)
	{
	if ( ! ctx?$query_id )
		return;

	if ( ctx$query_id !in queries )
		{
		send_cancel(ctx$query_id, ctx$agent_id);
		return;
		}

	local q = queries[ctx$query_id]$query;

	if ( is_new(ctx$agent_id, batch) && q?$on_rows )
		call_with_rows(q, ctx, batch, rows);
	}

# Another handler, so that an error in a function that was called does not make the agent wait for ever.
event ZeekAgentAPI::rows_v1(ctx: Context, batch: ZeekAgentAPI::Batch,
    rows: string) &priority=-5
	{
	if ( ! ctx?$query_id || ctx$query_id !in queries )
		return;

	Cluster::publish(fmt("/zeek-agent/query/host/%s", ctx$agent_id),
	    ZeekAgentAPI::rows_ack_v1, zeek_instance, ctx$query_id,
	    batch$stream, batch$high, batch$index);

	local state = queries[ctx$query_id];

	if ( ! batch$last || ! runs_once(state$query) )
		return;

	event query_done(ctx$query_id, ctx$agent_id);

	if ( state$scope == Host )
		{
		delete queries[ctx$query_id];
		hook query_ended(ctx$query_id);
		}
	}
