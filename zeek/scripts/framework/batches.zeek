##! Batches of rows: each processed once, then acknowledged.
##!
##! An agent sends a result again, in the same batches, until it is acknowledged; for events even across its own restarts.
##! Store id and sequence numbers identify handled rows, so that nothing is handled twice while this Zeek runs.

@load ./agents
@load ./queries

module ZeekAgent;

export {
	## Raised after the last batch of a query that runs once, for each agent.
	global query_done: event(query_id: string, agent_id: string);

	## How long the delivery state of an agent's query is kept.
	const stream_lifetime = 1day &redef;
}

# A batch was handled.
global batch_handled: event(ctx: Context, batch: ZeekAgentAPI::Batch);

type Stream: record {
	store: string;
	stream: string;
	## The result in flight.
	low: count;
	high: count;
	## Its next batch.
	index: count &default=0;
	## Results up to this number were handled.
	done: count &default=0;
};

# What was handled, by agent and query. A query keeps its id while this Zeek lives.
global streams: table[string, string] of Stream &write_expire=stream_lifetime;

# What to do with a batch: handle it when it is the next one, acknowledge what comes again, and leave what comes too early
# since one before it was lost, which the agent will notice.
type Verdict: enum {
	HANDLE,
	KNOWN,
	EARLY,
};

function known_stream(agent_id: string, query_id: string,
    batch: ZeekAgentAPI::Batch): Stream
	{
	local stream = Stream($store=batch$store, $stream=batch$stream, $low=batch$low,
	    $high=batch$high);

	if ( [agent_id, query_id] !in streams )
		return stream;

	local known = streams[agent_id, query_id];

	if ( known$store != batch$store || known$stream != batch$stream )
		return stream;

	if ( known$low == batch$low && known$high == batch$high )
		return known;

	stream$done = known$done;
	return stream;
	}

function judge(agent_id: string, query_id: string, batch: ZeekAgentAPI::Batch)
    : Verdict
	{
	local stream = known_stream(agent_id, query_id, batch);

	if ( batch$high <= stream$done || batch$index < stream$index )
		return KNOWN;

	if ( batch$index > stream$index )
		return EARLY;

	stream$index = batch$index + 1;

	if ( batch$last )
		stream$done = batch$high;

	streams[agent_id, query_id] = stream;
	return HANDLE;
	}

# Why rows could not be parsed, to follow a message.
function reason_of(parsed: from_json_result): string
	{
	return parsed?$err ? fmt(" (%s)", parsed$err) : "";
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
		Reporter::error(fmt("Zeek Agent: rows of agent %s do not match the query's row type%s: %s",
		    ctx$agent_id, reason_of(parsed), q$sql_stmt));
	}

function acknowledge(ctx: Context, batch: ZeekAgentAPI::Batch)
	{
	Cluster::publish(host_topic(ctx$agent_id), ZeekAgentAPI::rows_ack_v1,
	    zeek_instance, ctx$query_id, batch$stream, batch$high, batch$index);
	}

event ZeekAgentAPI::rows_v1(ctx: Context, batch: ZeekAgentAPI::Batch,
    rows: string)
	{
	if ( ! ctx?$query_id )
		return;

	if ( is_allowed_tables_pending )
		{
		event ZeekAgentAPI::rows_v1(ctx, batch, rows);
		return;
		}

	# Also rows that were under way when their query was forbidden.
	if ( ctx$query_id !in queries
	    || ctx$agent_id in queries[ctx$query_id]$refused )
		{
		send_cancel(ctx$query_id, ctx$agent_id);
		return;
		}

	local verdict = judge(ctx$agent_id, ctx$query_id, batch);

	if ( verdict == EARLY )
		return;

	# Raised first and handled later, so that an error in a function that is called does not keep the agent waiting.
	event batch_handled(ctx, batch);

	local q = queries[ctx$query_id]$query;

	if ( verdict == HANDLE && q?$on_rows )
		call_with_rows(q, ctx, batch, rows);
	}

event batch_handled(ctx: Context, batch: ZeekAgentAPI::Batch)
	{
	acknowledge(ctx, batch);

	if ( ctx$query_id !in queries )
		return;

	local state = queries[ctx$query_id];

	if ( ! batch$last || ! runs_once(state$query) )
		return;

	event query_done(ctx$query_id, ctx$agent_id);

	if ( state$scope == Host )
		{
		drop_query(ctx$query_id);
		delete streams[ctx$agent_id, ctx$query_id];
		}
	}
