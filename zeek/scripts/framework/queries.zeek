##! Installed queries and their target agents.

@load ./agents
@load ./groups

module ZeekAgent;

export {
	## Installs a query on agents, connected now or later.
	##
	## In a cluster all nodes run the same scripts: a query made during startup is installed once, by the manager.
	## A query of another node at run time goes through the manager, which raises the query's event; such a query
	## cannot have a function to call.
	##
	## q: the query.
	##
	## scope: whether ``target`` is a group or a single agent.
	##
	## target: name of the group, where ``all`` is every agent and ``linux``, ``darwin`` and ``windows`` are those of a
	## platform; or the agent's id.
	##
	## Returns: the query's id.
	global query: function(q: Query, scope: Scope &default=Group, target: string
	    &default="all"): string;

	## Cancels a query permanently on all agents. An unknown id is ignored.
	global cancel: function(query_id: string);

	## A string as a quoted SQL literal.
	global sql_text: function(value: string): string;

	## The tables that may be queried on agents; all if empty. A statement that names another table of an agent is not
	## sent to that agent.
	option allowed_tables: set[string] = {};

	## Has a query follow options at run time: when one of them changes, agents get the query with the new value. Events in
	## between are not lost.
	##
	## query_id: the query. Its results have another id after each change; it can still be cancelled by this one.
	##
	## interval_option: full name of the option with its schedule.
	##
	## subscription_option: full name of the option with its subscription, if there is one.
	global follow_options: function(query_id: string, interval_option: string,
	    subscription_option: string &default="");

	## How long it is known which one-time queries an agent that is gone has received. When it returns later, it receives
	## those to its groups again.
	const one_time_memory = 1day &redef;

	## Decides whether an agent may be queried; break to refuse.
	global may_query: hook(agent_id: string, q: Query);

	## Whether a row belongs to a query that its agent may no longer run. Rows that were in flight when
	## :zeek:see:`ZeekAgent::allowed_tables` changed still raise a query's event; batches of them are dropped.
	global is_refused: function(ctx: Context): bool;

	## Forwards a query of another node to the manager.
	global remote_query: event(query_id: string, q: ZeekAgentAPI::QueryDialectV1,
	    scope: Scope, target: string);

	## Forwards the end of a query to the manager.
	global remote_cancel: event(query_id: string);
}

type QueryState: record {
	query_id: string;
	query: Query;
	scope: Scope;
	target: string;
	## Agents that have received a one-time query, which is not sent to them again.
	asked: set[string] &default=set();
	## Connected agents that may not run it.
	refused: set[string] &default=set();
	## The id that it had first, if options have changed since.
	first_id: string &optional;
	## What a one-time query of one agent is for, if a later one with the same purpose takes its place.
	purpose: string &optional;
	## Whether a query to a group is for one of its agents, if it is not for all of them.
	is_for: function(agent_id: string): bool &optional;
	## As agents read it, with and without batches.
	wire_batches: ZeekAgentAPI::QueryV1 &optional;
	wire_rows: ZeekAgentAPI::QueryV1 &optional;
};

# Raised when a query that an agent had is cancelled there because it is no longer allowed.
global query_refused: event(query_id: string, agent_id: string);

global queries: table[string] of QueryState;

# Their ids: those to groups, and those to one agent by the agent. A Zeek that starts gets several for each of its agents.
global group_queries: set[string];
global host_queries: table[string] of set[string];

# The ids of queries that follow options, by the ids that they had first, once options have changed.
global current_ids: table[string] of string;

# Agents that did not get a query because they support no dialects.
global without_dialects: set[string] &create_expire=1day;

# Queries by the options that they follow.
global interval_followers: table[string] of set[string];
global subscription_followers: table[string] of set[string];

# Agents that are gone, until what they have received is forgotten.
global forget_asked: function(t: set[string], agent_id: string): interval;
global departed: set[string] &create_expire=one_time_memory
    &expire_func=forget_asked;

function forget_asked(t: set[string], agent_id: string): interval
	{
	for ( query_id in group_queries )
		delete queries[query_id]$asked[agent_id];

	return 0sec;
	}

# The words of statements, which are compared with the names of each agent's tables.
global words_by_statement: table[string] of set[string] &read_expire=1min;

# Connected agents whose turn to get their queries has not come.
global unserved: set[string];

global is_starting = T;

function sql_text(value: string): string
	{
	return fmt("'%s'", gsub(value, /'/, "''"));
	}

function runs_once(q: Query): bool
	{
	return ! q?$schedule_ || q$schedule_ == 0sec;
	}

function uses_batches(agent_id: string, q: Query): bool
	{
	return q?$on_rows && has_feature(agent_id, "batches");
	}

function on_wire(q: Query, with_batches: bool): ZeekAgentAPI::QueryV1
	{
	local wire = ZeekAgentAPI::QueryV1($sql_stmt=q$sql_stmt,
	    $subscription=q$subscription, $event_=ZeekAgentAPI::rows_v1,
	    $requires_tables=q$requires_tables,
	    $if_missing_tables=q$if_missing_tables);

	if ( ! with_batches )
		wire$event_ = q$event_;
	else if ( q?$batch_stmt )
		wire$sql_stmt = q$batch_stmt;

	if ( q?$schedule_ )
		wire$schedule_ = q$schedule_;

	if ( q?$cookie )
		wire$cookie = q$cookie;

	return wire;
	}

# The same for a query that is installed on many agents.
function wire_of(state: QueryState, with_batches: bool): ZeekAgentAPI::QueryV1
	{
	if ( with_batches )
		{
		if ( ! state?$wire_batches )
			state$wire_batches = on_wire(state$query, T);

		return state$wire_batches;
		}

	if ( ! state?$wire_rows )
		state$wire_rows = on_wire(state$query, F);

	return state$wire_rows;
	}

# The same with its dialect.
function on_wire_with_dialect(q: Query, with_batches: bool)
    : ZeekAgentAPI::QueryDialectV1
	{
	local plain = on_wire(q, with_batches);
	local wire = ZeekAgentAPI::QueryDialectV1($sql_stmt=plain$sql_stmt,
	    $subscription=plain$subscription, $event_=plain$event_,
	    $requires_tables=plain$requires_tables,
	    $if_missing_tables=plain$if_missing_tables);

	if ( plain?$schedule_ )
		wire$schedule_ = plain$schedule_;

	if ( plain?$cookie )
		wire$cookie = plain$cookie;

	if ( q?$dialect )
		wire$dialect = q$dialect;

	return wire;
	}

# Whether an agent can run the query in its dialect. An agent that cannot is reported once.
function has_dialect(agent_id: string, q: Query): bool
	{
	if ( ! q?$dialect || has_feature(agent_id, "dialects") )
		return T;

	if ( agent_id !in without_dialects )
		Reporter::warning(fmt("Zeek Agent: agent %s (%s) does not support dialects, and does not get queries in that of %s",
		    agent_id, hostname_of(agent_id), q$dialect));

	add without_dialects[agent_id];
	return F;
	}

function words_of(sql: string): set[string]
	{
	if ( sql !in words_by_statement )
		words_by_statement[sql] = find_all(to_lower(sql), /[a-z_0-9]+/);

	return words_by_statement[sql];
	}

function is_allowed(agent_id: string, q: Query): bool
	{
	if ( |allowed_tables| > 0 )
		{
		# What it would answer is not known.
		if ( agent_id !in agents || ! agents[agent_id]$hello?$tables )
			return F;

		local has_tables = agents[agent_id]$hello$tables;
		local sql = q$sql_stmt + ( q?$batch_stmt ? " " + q$batch_stmt : "" );

		for ( word in words_of(sql) )
			if ( word in has_tables && word !in allowed_tables )
				return F;
		}

	return hook may_query(agent_id, q);
	}

# The topics that bring a query to an agent if it is one of those meant. An agent knows its own groups; it takes a query
# that comes twice once.
function topics_for(state: QueryState, agent_id: string): vector of string
	{
	if ( state$scope == Host )
		return state$target == agent_id ? vector(host_topic(agent_id)) : vector();

	if ( state?$is_for && ! state$is_for(agent_id) )
		return vector();

	if ( has_subnet_group(agent_id, state$target) )
		return vector(host_topic(agent_id));

	local topics = vector(group_topic(agent_id, state$target));
	local lower = to_lower(state$target);

	if ( lower != state$target )
		topics += group_topic(agent_id, lower);

	return topics;
	}

function send_query(state: QueryState, agent_id: string)
	{
	local with_batches = uses_batches(agent_id, state$query);

	if ( ! with_batches && ! state$query?$event_ )
		return;

	# A single agent's batches have an end: what is still here was not answered to the end.
	local may_repeat = with_batches && state$scope == Host;

	if ( runs_once(state$query) && agent_id in state$asked && ! may_repeat )
		return;

	local topics = topics_for(state, agent_id);

	if ( |topics| == 0 )
		return;

	if ( ! has_dialect(agent_id, state$query) )
		return;

	if ( ! is_allowed(agent_id, state$query) )
		{
		add state$refused[agent_id];
		return;
		}

	delete state$refused[agent_id];

	if ( runs_once(state$query) )
		add state$asked[agent_id];

	for ( _, topic in topics )
		{
		count_message();

		if ( state$query?$dialect )
			Cluster::publish(topic, ZeekAgentAPI::install_query_v1, zeek_instance,
			    state$query_id, on_wire_with_dialect(state$query,
			    with_batches));
		else
			Cluster::publish(topic, ZeekAgentAPI::install_query_v1, zeek_instance,
			    state$query_id, wire_of(state, with_batches));
		}
	}

function send_cancel(query_id: string, agent_id: string)
	{
	count_message();
	Cluster::publish(host_topic(agent_id), ZeekAgentAPI::cancel_query_v1,
	    zeek_instance, query_id);
	}

# A record of its own, which the one who asked does not change afterwards. Functions stay the same.
function own_query(q: Query): Query
	{
	local own = Query($sql_stmt=q$sql_stmt, $subscription=q$subscription,
	    $requires_tables=copy(q$requires_tables), $if_missing_tables=copy(
	    q$if_missing_tables));

	if ( q?$batch_stmt )
		own$batch_stmt = q$batch_stmt;

	if ( q?$schedule_ )
		own$schedule_ = q$schedule_;

	if ( q?$event_ )
		own$event_ = q$event_;

	if ( q?$cookie )
		own$cookie = q$cookie;

	if ( q?$dialect )
		own$dialect = q$dialect;

	if ( q?$row_type )
		own$row_type = q$row_type;

	if ( q?$on_rows )
		own$on_rows = q$on_rows;

	return own;
	}

function all_agents(): vector of string
	{
	local ids: vector of string;

	for ( agent_id in agents )
		ids += agent_id;

	return ids;
	}

function add_state(state: QueryState)
	{
	local target = state$target;
	queries[state$query_id] = state;

	if ( state$scope == Host )
		{
		if ( target !in host_queries )
			host_queries[target] = set();

		add host_queries[target][state$query_id];

		if ( target in agents )
			send_query(state, target);

		return;
		}

	add group_queries[state$query_id];
	for_agents(all_agents(), function[state](agent_id: string)
		{
		if ( state$query_id in queries && agent_id in agents )
			send_query(state, agent_id);
		});
	}

function add_query(query_id: string, q: Query, scope: Scope, target: string)
	{
	add_state(QueryState($query_id=query_id, $query=own_query(q), $scope=scope,
	    $target=target));
	}

# Removes a query here. Its agents are not told.
function drop_query(query_id: string)
	{
	local state = queries[query_id];
	delete queries[query_id];
	delete group_queries[query_id];

	if ( state?$first_id )
		delete current_ids[state$first_id];

	for ( _, interval_ids in interval_followers )
		delete interval_ids[query_id];

	for ( _, subscription_ids in subscription_followers )
		delete subscription_ids[query_id];

	if ( state$scope != Host )
		return;

	delete host_queries[state$target][query_id];

	if ( |host_queries[state$target]| == 0 )
		delete host_queries[state$target];
	}

# The queries that may be for an agent.
function queries_for(agent_id: string): set[string]
	{
	local ids = copy(group_queries);

	if ( agent_id in host_queries )
		for ( query_id in host_queries[agent_id] )
			add ids[query_id];

	return ids;
	}

function query(q: Query, scope: Scope, target: string): string
	{
	local query_id = unique_id("za_");

	if ( ! q?$event_ && ! q?$on_rows )
		Reporter::error(fmt("Zeek Agent: query has neither event_ nor on_rows: %s",
		    q$sql_stmt));
	else if ( is_owner() )
		add_query(query_id, q, scope, target);
	else if ( ! is_starting && q?$event_ )
		Cluster::publish(Cluster::manager_topic, remote_query, query_id,
		    on_wire_with_dialect(q, F), scope, target);
	else if ( ! is_starting )
		Reporter::error(fmt(
		    "Zeek Agent: only the manager can be called with rows: %s",
		    q$sql_stmt));

	return query_id;
	}

# Installs a query on those of all agents for which a function holds, to be called by each node at start. Whoever knows that
# it holds for an agent no longer, or now, calls the function below.
function query_some(q: Query, is_for: function(agent_id: string): bool): string
	{
	local query_id = unique_id("za_");

	if ( is_owner() )
		add_state(QueryState($query_id=query_id, $query=own_query(q), $scope=Group,
		    $target="all", $is_for=is_for));

	return query_id;
	}

# Sends a query to an agent for which it is now, or cancels it at one for which it is no longer.
function retarget_query(query_id: string, agent_id: string)
	{
	if ( query_id !in queries || agent_id !in agents )
		return;

	local state = queries[query_id];

	if ( state$is_for(agent_id) )
		send_query(state, agent_id);
	else
		send_cancel(query_id, agent_id);
	}

# The id that a query has now.
function current_id(query_id: string): string
	{
	return query_id in current_ids ? current_ids[query_id] : query_id;
	}

function cancel(query_id: string)
	{
	if ( ! is_owner() )
		{
		Cluster::publish(Cluster::manager_topic, remote_cancel, query_id);
		return;
		}

	local id = current_id(query_id);

	if ( id !in queries )
		return;

	local state = queries[id];
	drop_query(id);

	if ( state$scope == Host )
		send_cancel(id, state$target);
	else
		for_agents(all_agents(), function[id](agent_id: string)
			{
			send_cancel(id, agent_id);
			});
	}

# Queries an agent once, in place of a query for the same purpose that it has not answered: one that connects again and
# again never may.
function query_anew(purpose: string, q: Query, agent_id: string)
	{
	if ( agent_id in host_queries )
		for ( query_id in copy(host_queries[agent_id]) )
			if ( queries[query_id]?$purpose && queries[query_id]$purpose == purpose )
				cancel(query_id);

	queries[query(q, Host, agent_id)]$purpose = purpose;
	}

event remote_query(query_id: string, q: ZeekAgentAPI::QueryDialectV1,
    scope: Scope, target: string)
	{
	if ( is_owner() && query_id !in queries )
		add_query(query_id, q, scope, target);
	}

event remote_cancel(query_id: string)
	{
	if ( is_owner() )
		cancel(query_id);
	}

# An agent that has connected gets its queries.
function send_queries(agent_id: string)
	{
	delete unserved[agent_id];

	if ( agent_id !in agents )
		return;

	for ( query_id in queries_for(agent_id) )
		send_query(queries[query_id], agent_id);
	}

event agent_connected(agent_id: string)
	{
	if ( agent_id !in agents )
		return;

	delete departed[agent_id];

	if ( agent_id in unserved )
		return;

	add unserved[agent_id];
	for_agents(vector(agent_id), send_queries);
	}

event agent_left(agent_id: string, reason: string)
	{
	if ( agent_id !in agents )
		add departed[agent_id];

	for ( query_id in queries_for(agent_id) )
		{
		local state = queries[query_id];
		delete state$refused[agent_id];

		# Nobody answers it any more.
		if ( state$scope == Host && runs_once(state$query) )
			drop_query(query_id);
		}
	}

event group_changed(agent_id: string, group: string)
	{
	for_agents(vector(agent_id), function[group](changed_id: string)
		{
		for ( query_id, state in queries )
			{
			if ( state$scope != Group || state$target != group )
				next;

			if ( ! has_subnet_group(changed_id, group) )
				send_cancel(query_id, changed_id);

			send_query(state, changed_id);
			}
		});
	}

# Cancels a query at the agents that may no longer run it, and sends it to those that now may.
function recheck_query(state: QueryState)
	{
	local permitted: vector of string;
	local forbidden: vector of string;

	for ( agent_id in agents )
		{
		if ( |topics_for(state, agent_id)| == 0
		    || agent_id in state$refused == ! is_allowed(agent_id, state$query) )
			next;

		if ( agent_id in state$refused )
			permitted += agent_id;
		else
			{
			forbidden += agent_id;
			add state$refused[agent_id];
			event query_refused(state$query_id, agent_id);
			}
		}

	for_agents(permitted, function[state](permitted_id: string)
		{
		if ( state$query_id in queries && permitted_id in agents )
			send_query(state, permitted_id);
		});
	for_agents(forbidden, function[state](forbidden_id: string)
		{
		send_cancel(state$query_id, forbidden_id);
		});
	}

# Whether a new value is about to hold: rows that come meanwhile wait for it.
global is_allowed_tables_pending = F;

# Raised after the option has changed.
event allowed_tables_changed()
	{
	is_allowed_tables_pending = F;
	if ( ! is_owner() )
		return;

	for ( _, state in queries )
		recheck_query(state);
	}

function is_refused(ctx: Context): bool
	{
	if ( ! ctx?$query_id || ctx$query_id !in queries )
		return F;

	local state = queries[ctx$query_id];
	return ctx$agent_id in state$refused
	    || ( is_allowed_tables_pending && ! is_allowed(ctx$agent_id, state$query) );
	}

function on_allowed_tables(id: string, tables: set[string]): set[string]
	{
	is_allowed_tables_pending = T;
	event allowed_tables_changed();
	return tables;
	}

# Installs a changed query in place of the one before. Under its new id it continues where that stopped.
function replace_query(old_id: string)
	{
	local state = queries[old_id];
	local first_id = state?$first_id ? state$first_id : old_id;
	local new_id = unique_id("za_");
	local by_interval: set[string] = set();
	local by_subscription: set[string] = set();

	for ( interval_option, interval_ids in interval_followers )
		if ( old_id in interval_ids )
			add by_interval[interval_option];

	for ( subscription_option, subscription_ids in subscription_followers )
		if ( old_id in subscription_ids )
			add by_subscription[subscription_option];

	cancel(old_id);
	local changed = QueryState($query_id=new_id, $query=own_query(state$query),
	    $scope=state$scope, $target=state$target, $first_id=first_id);

	if ( state?$is_for )
		changed$is_for = state$is_for;

	add_state(changed);
	current_ids[first_id] = new_id;

	for ( followed_interval in by_interval )
		add interval_followers[followed_interval][new_id];

	for ( followed_subscription in by_subscription )
		add subscription_followers[followed_subscription][new_id];
	}

event interval_changed(option_name: string, value: interval)
	{
	for ( query_id in copy(interval_followers[option_name]) )
		{
		if ( query_id !in queries )
			next;

		queries[query_id]$query$schedule_ = value;
		replace_query(query_id);
		}
	}

event subscription_changed(option_name: string, value: SubscriptionType)
	{
	for ( query_id in copy(subscription_followers[option_name]) )
		{
		if ( query_id !in queries )
			next;

		queries[query_id]$query$subscription = value;
		replace_query(query_id);
		}
	}

function on_interval(option_name: string, value: interval): interval
	{
	# Without a schedule it would run once and never again.
	local taken = refuse_zero(option_name, value);

	if ( taken == value )
		event interval_changed(option_name, value);

	return taken;
	}

function on_subscription(option_name: string, value: SubscriptionType)
    : SubscriptionType
	{
	event subscription_changed(option_name, value);
	return value;
	}

function follow_options(query_id: string, interval_option: string,
    subscription_option: string)
	{
	local id = current_id(query_id);

	if ( id !in queries )
		return;

	if ( interval_option !in interval_followers )
		{
		interval_followers[interval_option] = set();
		Option::set_change_handler(interval_option, on_interval);
		}

	add interval_followers[interval_option][id];

	if ( subscription_option == "" )
		return;

	if ( subscription_option !in subscription_followers )
		{
		subscription_followers[subscription_option] = set();
		Option::set_change_handler(subscription_option, on_subscription);
		}

	add subscription_followers[subscription_option][id];
	}

event zeek_init()
	{
	Option::set_change_handler("ZeekAgent::allowed_tables", on_allowed_tables);
	}

event zeek_init() &priority=-1000
	{
	is_starting = F;
	}
