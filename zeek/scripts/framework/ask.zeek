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
	## In a cluster any node can ask; nodes other than the manager ask through it. What can be known at once fails at once:
	## that the agent is not connected, or may not be asked this.
	##
	## agent_id: the agent, which must support batches.
	##
	## sql: the statement.
	##
	## row_type: a type ``vector of R``, where the record ``R`` has an optional field for each column, by name.
	##
	## time_limit: how long to wait.
	##
	## dialect: the dialect of the statement, such as ``osquery``; empty for the agent's own.
	global ask: function(agent_id: string, sql: string, row_type: any,
	    time_limit: interval &default=30sec, dialect: string &default="")
	    : Answer;

	## Forwards a question of another node to the manager.
	global remote_ask: event(node: string, question_id: string, agent_id: string,
	    sql: string, time_limit: interval, dialect: string);

	## Returns the answer to the node that asked: rows as a JSON array, or an error.
	global remote_answer: event(question_id: string, rows: string, error: string);
}

# What came so far for each question, and whether that is all. Questions have the ids of their queries.
type Reply: record {
	agent_id: string;
	## The rows of each batch, as members of a JSON array.
	batches: vector of string &default=vector();
	is_complete: bool &default=F;
	error: string &optional;
};

global replies: table[string] of Reply;

# Questions whose errors are their callers' even if they come late.
global recent_questions: set[string] &create_expire=10min;

function fail_reply(query_id: string, error: string)
	{
	if ( query_id !in replies )
		return;

	replies[query_id]$error = error;
	replies[query_id]$is_complete = T;
	}

function take_reply(ctx: Context, batch: ZeekAgentAPI::Batch, rows: any)
	{
	if ( ctx$query_id !in replies )
		return;

	local reply = replies[ctx$query_id];
	local members = strip(( rows as string )[1 : -1]);

	if ( members != "" )
		reply$batches += members;

	reply$is_complete = batch$last;
	}

event ZeekAgentAPI::agent_error_v1(ctx: Context, msg: string)
	{
	if ( ! ctx?$query_id || ctx$query_id !in recent_questions )
		{
		Reporter::error(fmt("Zeek Agent: agent %s (%s) reports: %s", ctx$agent_id,
		    hostname(ctx), msg));
		return;
		}

	if ( ctx$query_id !in replies )
		return;

	fail_reply(ctx$query_id, msg);
	cancel(ctx$query_id);
	}

event agent_left(agent_id: string, reason: string)
	{
	for ( query_id, reply in replies )
		if ( reply$agent_id == agent_id && ! reply$is_complete )
			fail_reply(query_id, fmt("the agent is gone: %s", reason));
	}

event query_refused(query_id: string, agent_id: string)
	{
	if ( query_id !in replies )
		return;

	fail_reply(query_id, "ZeekAgent::allowed_tables or may_query no longer allows the statement");
	cancel(query_id);
	}

# Why a question cannot be answered; empty when it may be.
function why_not_ask(agent_id: string, q: Query): string
	{
	if ( agent_id !in agents )
		return "the agent is not connected";

	if ( ! has_feature(agent_id, "batches") )
		return "the agent does not support batches";

	if ( q?$dialect && ! has_feature(agent_id, "dialects") )
		return "the agent does not support dialects";

	if ( ! is_allowed(agent_id, q) )
		return "ZeekAgent::allowed_tables or may_query does not allow the statement";

	return "";
	}

# Why the manager cannot be asked; empty when it can.
function why_not_relay(): string
	{
	for ( _, node in Cluster::nodes )
		if ( node$node_type == Cluster::MANAGER )
			return node?$id ? "" : "the manager is not connected";

	return "the cluster has no manager";
	}

# Sends a question, here or through the manager. Its reply, which may be complete at once, has its id.
function begin_ask(agent_id: string, sql: string, time_limit: interval,
    dialect: string): string
	{
	local q = Query($sql_stmt=sql, $on_rows=take_reply);

	if ( dialect != "" )
		q$dialect = dialect;

	local obstacle = is_owner() ? why_not_ask(agent_id, q) : why_not_relay();
	local question_id = unique_id("za_ask_");

	if ( obstacle == "" && is_owner() )
		question_id = query(q, Host, agent_id);

	replies[question_id] = Reply($agent_id=agent_id);

	if ( obstacle != "" )
		fail_reply(question_id, obstacle);
	else if ( is_owner() )
		add recent_questions[question_id];
	else
		Cluster::publish(Cluster::manager_topic, remote_ask, Cluster::node,
		    question_id, agent_id, sql, time_limit, dialect);

	return question_id;
	}

# Takes the reply to a question, which is forgotten.
function end_ask(question_id: string): Reply
	{
	local reply = replies[question_id];
	delete replies[question_id];
	return reply;
	}

function abandon_ask(question_id: string)
	{
	delete replies[question_id];

	# What another node asked ends with the manager's own time limit.
	if ( is_owner() )
		cancel(question_id);
	}

function all_rows(reply: Reply): string
	{
	return join_string_vec(reply$batches, ",");
	}

function answer(reply: Reply, row_type: any): Answer
	{
	if ( reply?$error )
		return Answer($error=reply$error);

	local parsed = from_json(fmt("[%s]", all_rows(reply)), row_type);

	if ( ! parsed$valid )
		return Answer($error=fmt("the rows do not fit the type%s", parsed?$err ? ": " +
		    parsed$err : ""));

	return Answer($rows=parsed$v);
	}

function ask(agent_id: string, sql: string, row_type: any, time_limit: interval,
    dialect: string): Answer
	{
	local question_id = begin_ask(agent_id, sql, time_limit, dialect);

	return when [question_id, row_type] ( question_id in replies
	    && replies[question_id]$is_complete )
		{
		return answer(end_ask(question_id), row_type);
		}
	timeout time_limit
		{
		abandon_ask(question_id);
		return Answer($error="no answer in time");
		}
	}

event remote_ask(node: string, question_id: string, agent_id: string,
    sql: string, time_limit: interval, dialect: string)
	{
	if ( ! is_owner() )
		return;

	local asked = begin_ask(agent_id, sql, time_limit, dialect);
	local topic = Cluster::node_topic(node);

	when [asked, question_id, topic] ( asked in replies
	    && replies[asked]$is_complete )
		{
		local reply = end_ask(asked);
		Cluster::publish(topic, remote_answer, question_id, all_rows(reply),
		    reply?$error ? reply$error : "");
		}
	timeout time_limit
		{
		abandon_ask(asked);
		}
	}

event remote_answer(question_id: string, rows: string, error: string)
	{
	if ( question_id !in replies )
		return;

	if ( error != "" )
		{
		fail_reply(question_id, error);
		return;
		}

	replies[question_id]$batches = vector(rows);
	replies[question_id]$is_complete = T;
	}
