# @TEST-DOC: Configuration files can set the options of the package and of the examples.
#
# @TEST-EXEC: ln -s ${PACKAGE} zeek-agent
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap "udp 10.0.0.1:1 10.0.0.2:2 0 1"
# @TEST-EXEC: zeek -C -r flows.pcap ${FILES}/test.zeek zeek-agent zeek-agent/attribution/known-services.zeek zeek-agent/attribution/software.zeek ${EXAMPLES}/*.zeek %INPUT > output
# @TEST-EXEC: btest-diff output

redef Config::config_files += { "options.dat" };
redef exit_only_after_terminate = T;

function changed(id: string, value: set[string]): set[string]
	{
	print id, Test::sorted(value);
	terminate();
	return value;
	}

event zeek_init()
	{
	Option::set_change_handler("UnexpectedProcess::more_clients", changed);
	local names: set[string] = set();

	# Of types that files cannot contain.
	for ( name, id in global_ids() )
		if ( id$option_value && name == /(ZeekAgent|UnexpectedProcess|DownloadThenExecute|NewListener|ProcessMemory).*/ && /^table\[/ in id$type_name )
			add names[name];

	print Test::sorted(names);
	}

# @TEST-START-FILE options.dat
UnexpectedProcess::more_clients	22/tcp rsync,25/tcp sendmail.postfix
# @TEST-END-FILE
