##! What tests share: ports for themselves, in place of those that all Zeeks of a machine share, and sorted output.

@load base/utils/numbers

module Cluster::Backend::ZeroMQ;

@ifdef ( listen_xpub_endpoint )
redef listen_xpub_endpoint = fmt("tcp://127.0.0.1:%d", extract_count(getenv("XPUB_PORT")));
redef connect_xsub_endpoint = listen_xpub_endpoint;
redef listen_xsub_endpoint = fmt("tcp://127.0.0.1:%d", extract_count(getenv("XSUB_PORT")));
redef connect_xpub_endpoint = listen_xsub_endpoint;
@endif

module Test;

export {
	## A set's members in order.
	global sorted: function(members: set[string]): string;
}

function sorted(members: set[string]): string
	{
	local all: vector of string;

	for ( member in members )
		all += member;

	return join_string_vec(sort(all, strcmp), " ");
	}
