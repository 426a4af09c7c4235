##! Groups of agents by the subnets of their addresses, in addition to the groups that agents are configured with.

@load ./agents

module ZeekAgent;

export {
	## The groups of agents with an address in a subnet.
	option subnet_groups: table[subnet] of set[string] = {};

	## Makes all agents with an address in a subnet members of a group; agents there get its queries at once.
	global join_group: function(net: subnet, group: string);

	## Revokes a membership that :zeek:see:`ZeekAgent::join_group` or :zeek:see:`ZeekAgent::subnet_groups` gave;
	## the group's queries end at agents that were members by it alone.
	global leave_group: function(net: subnet, group: string);

	## Whether an agent is a member of a group by one of its addresses.
	global has_subnet_group: function(agent_id: string, group: string): bool;
}

# Raised when an agent may have become, or ceased to be, a member of a group.
global group_changed: event(agent_id: string, group: string);

global runtime_groups: table[subnet, string] of bool = {};

# Whether one of some addresses makes an agent a member.
function is_subnet_member(addresses: set[addr], group: string): bool
	{
	for ( a in addresses )
		{
		for ( net, groups in subnet_groups )
			if ( a in net && group in groups && [net, group] !in runtime_groups )
				return T;

		for ( [net, name], is_member in runtime_groups )
			if ( is_member && name == group && a in net )
				return T;
		}

	return F;
	}

function has_subnet_group(agent_id: string, group: string): bool
	{
	if ( |subnet_groups| + |runtime_groups| == 0
	    || agent_id !in agents
	    || ! agents[agent_id]$hello?$addresses )
		return F;

	return is_subnet_member(agents[agent_id]$hello$addresses, group);
	}

event addresses_changed(agent_id: string, before: set[addr])
	{
	local names: set[string] = set();

	for ( _, groups in subnet_groups )
		for ( group in groups )
			add names[group];

	for ( [_, name], _ in runtime_groups )
		add names[name];

	for ( group_name in names )
		if ( is_subnet_member(before, group_name) != has_subnet_group(agent_id,
		    group_name) )
			event group_changed(agent_id, group_name);
	}

function announce_group(net: subnet, group: string)
	{
	for ( agent_id, agent in agents )
		if ( agent$hello?$addresses )
			for ( a in agent$hello$addresses )
				if ( a in net )
					{
					event group_changed(agent_id, group);
					break;
					}
	}

# Raised after the option has changed.
event subnet_groups_changed(before: table[subnet] of set[string])
	{
	for ( net, groups in before )
		for ( group in groups )
			if ( net !in subnet_groups || group !in subnet_groups[net] )
				announce_group(net, group);

	for ( now_net, now_groups in subnet_groups )
		for ( now_group in now_groups )
			if ( now_net !in before || now_group !in before[now_net] )
				announce_group(now_net, now_group);
	}

function on_subnet_groups(id: string, groups: table[subnet] of set[string])
    : table[subnet] of set[string]
	{
	event subnet_groups_changed(copy(subnet_groups));
	return groups;
	}

event zeek_init()
	{
	Option::set_change_handler("ZeekAgent::subnet_groups", on_subnet_groups);
	}

function join_group(net: subnet, group: string)
	{
	runtime_groups[net, group] = T;
	announce_group(net, group);
	}

function leave_group(net: subnet, group: string)
	{
	runtime_groups[net, group] = F;
	announce_group(net, group);
	}
