##! Messages to many agents, spread over time: Zeek's cluster backend drops what it cannot take at once.

module ZeekAgent;

export {
	## How many messages per second agents are sent when there is something for many of them, as when they all connect
	## after a restart. Fewer messages are sent at once.
	option max_messages_per_second = 5000;
}

# Something to do for each of some agents.
type Task: record {
	agent_ids: vector of string;
	act: function(agent_id: string);
	position: count &default=0;
};

# Those that are not done, in the order in which they came: numbers from the first one up to the next one.
global tasks: table[count] of Task;
global first_task = 0;
global next_task = 0;
global is_pace_scheduled = F;

# Messages are sent in bursts, and counted by those who send them.
const burst_interval = 50msec;
global burst_began = double_to_time(0.0);
global burst_messages = 0;

# To be called for each message.
function count_message()
	{
	++burst_messages;
	}

function may_send(): bool
	{
	# Messages go nowhere then.
	if ( reading_traces() )
		return T;

	local now = current_time();

	if ( now < burst_began || now >= burst_began + burst_interval )
		{
		burst_began = now;
		burst_messages = 0;
		}

	return burst_messages < max_messages_per_second * ( burst_interval / 1sec );
	}

global go_on: event();

function do_tasks()
	{
	# Beforehand, since an error in a script that is called ends this.
	if ( ! is_pace_scheduled && first_task < next_task )
		{
		is_pace_scheduled = T;
		schedule burst_interval { go_on() };
		}

	while ( first_task < next_task && may_send() )
		{
		local task = tasks[first_task];

		if ( task$position < |task$agent_ids| )
			{
			local agent_id = task$agent_ids[task$position];
			++task$position;
			task$act(agent_id);
			}

		if ( task$position >= |task$agent_ids| && first_task in tasks )
			{
			delete tasks[first_task];
			++first_task;
			}
		}
	}

event go_on()
	{
	is_pace_scheduled = F;
	do_tasks();
	}

# Calls a function with each of some agents: at once, or in turn after what is to be done for others. Agents may have left
# by then.
function for_agents(agent_ids: vector of string, act: function(
    agent_id: string))
	{
	if ( |agent_ids| == 0 )
		return;

	tasks[next_task] = Task($agent_ids=agent_ids, $act=act);
	++next_task;
	do_tasks();
	}
