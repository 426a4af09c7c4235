##! A one-time query of a single agent, with a result to wait for.

@load ./queries
@load ./batches

module ZeekAgent;

export {
	## The result of a one-time query.
	type Answer: record {
		## The rows, of the requested type, if there is a result.
		rows: any &optional;
		## The reason if there is no result.
		error: string &optional;
	};

	## Queries an agent once. Use it with ``when``:
	##
	## .. code:: zeek
	##
	##    when [id] ( local answer = ZeekAgent::ask(id, "SELECT name FROM users", Users) )
	##        {
	##        if ( answer?$rows )
	##            print answer$rows as Users;
	##        }
	##
	## agent_id: the agent, which must support batches.
	##
	## sql: the statement.
	##
	## row_type: a type ``vector of R``, where the record ``R`` has an optional field for each column, by name.
	##
	## time_limit: how long to wait.
	global ask: function(agent_id: string, sql: string, row_type: any,
	    time_limit: interval &default=30sec): Answer;
}

# What came so far for each question, and whether that is all.
type Reply: record {
	rows: string &default="";
	is_complete: bool &default=F;
	error: string &optional;
};

global replies: table[string] of Reply;

function take_reply(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	if ( ctx$query_id !in replies )
		return;

	local reply = replies[ctx$query_id];
	local members = strip(( rows as string )[1 : -1]);

	if ( reply$rows != "" && members != "" )
		reply$rows += ",";

	reply$rows += members;
	reply$is_complete = batch$last;
	}

event ZeekAgentAPI::agent_error_v1(ctx: Context, msg: string)
	{
	if ( ! ctx?$query_id || ctx$query_id !in replies )
		return;

	replies[ctx$query_id]$error = msg;
	replies[ctx$query_id]$is_complete = T;
	cancel(ctx$query_id);
	}

function answer(query_id: string, row_type: any): Answer
	{
	local reply = replies[query_id];
	delete replies[query_id];

	if ( reply?$error )
		return Answer($error=reply$error);

	local parsed = from_json(fmt("[%s]", reply$rows), row_type);

	if ( ! parsed$valid )
		return Answer($error="the rows do not fit the type");

	return Answer($rows=parsed$v);
	}

function ask(agent_id: string, sql: string, row_type: any, time_limit: interval)
    : Answer
	{
	if ( ! has_feature(agent_id, "batches") )
		return when ( T )
			{
			return Answer($error="the agent is not connected, or does not know batches");
			}

	local query_id = query(Query($sql_stmt=sql, $on_rows=take_reply), Host,
	    agent_id);
	replies[query_id] = Reply();

	return when [query_id, row_type] ( query_id in replies
	    && replies[query_id]$is_complete )
		{
		return answer(query_id, row_type);
		}
	timeout time_limit
		{
		delete replies[query_id];
		cancel(query_id);
		return Answer($error="no answer in time");
		}
	}
