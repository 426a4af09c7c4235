##! Claims without a connection: bytes and microseconds each. Run by bench_attribution.py, with the package.

module ZeekAgent;

# Environment: how many flows, and of how many processes.
global flows = to_count(getenv("FLOWS"));
global processes = to_count(getenv("PROCESSES"));

redef max_claims = 10000000;
redef max_claims_total = 10000000;

function cpu_time(): interval
	{
	local stats = get_proc_stats();
	return stats$user_time + stats$system_time;
	}

function row(number: count): string
	{
	local process = number % processes;
	return fmt("{\"began\":%.6f,\"direction\":\"outbound\",\"pid\":%d,\"process\":\"python3\",\"uid\":1000,\"protocol\":6,\"local_addr\":\"10.0.0.1\",\"local_port\":%d,\"remote_addr\":\"10.1.%d.%d\",\"remote_port\":443,\"exe\":\"/usr/bin/python3.11\",\"cmdline\":\"/usr/bin/python3.11 -m http.server %d\",\"cookie\":%d,\"entity_id\":\"941640c8d90e-32662-%d\"}",
	    time_to_double(network_time()), process, 1024 + number % 60000,
	    number / 60000 / 250, number / 60000 % 250, process, number + 1,
	    process);
	}

event zeek_init() &priority=-100
	{
	local hello = ZeekAgentAPI::AgentHelloV1($agent_id="A", $instance_id="I",
	    $hostname="a", $addresses=set(10.0.0.1));
	keep_agent("A", Agent($last_seen=network_time(), $last_heard=current_time(),
	    $hello=hello, $hello_id=""));
	local batches: vector of string;
	local rows: vector of string;
	local number = 0;

	while ( number < flows )
		{
		rows += row(number);
		++number;

		if ( |rows| == 100 )
			{
			batches += "[" + join_string_vec(rows, ",") + "]";
			rows = vector();
			}
		}

	# The memory of one batch is used again by the next one.
	local memory = get_proc_stats()$mem;
	local begun = cpu_time();

	for ( _, batch in batches )
		take_claims("A", network_time(), batch);

	local taken = cpu_time() - begun;
	print fmt("%d %.0f %.2f", |claims|, ( get_proc_stats()$mem - memory ) * 1.0 /
	    flows, interval_to_double(taken) * 1e6 / flows);
	terminate();
	}
