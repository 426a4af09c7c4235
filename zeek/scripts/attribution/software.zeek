##! Adds the programs behind connections to ``software.log``, as reported by agents. Not loaded by default.
##!
##! Unlike detection from protocol contents, this covers encrypted and unknown protocols. Versions are not available, so a
##! program has a name of its own for each of its roles, such as ``curl (client process)``. Zeek tracks software by name: under
##! the bare name it would replace what a protocol found, with its version.

@load base/frameworks/software
@load ./owners

module ZeekAgent;

export {
	redef enum Software::Type += {
		## A program that accepts connections.
		SERVER_PROCESS,
		## A program that opens connections.
		CLIENT_PROCESS,
	};

	## The kinds of programs to report.
	option software_types: set[Software::Type] = {
		SERVER_PROCESS,
		CLIENT_PROCESS
	};
}

function role_name(type_: Software::Type): string
	{
	return type_ == CLIENT_PROCESS ? "client process" : "server process";
	}

event connection_attributed(c: connection, is_orig: bool, process: Process)
	{
	local type_ = is_orig ? CLIENT_PROCESS : SERVER_PROCESS;

	if ( type_ !in software_types )
		return;

	# A process may call itself anything; its executable's name says more.
	local name = process?$exe ? sub(process$exe, /^.*\//, "") : process?$process ?
	    process$process : "";

	if ( name == "" )
		return;

	local software = Software::Info($host=is_orig ? c$id$orig_h : c$id$resp_h,
	    $software_type=type_, $name=fmt("%s (%s)", name, role_name(type_)),
	    $version=Software::Version());

	if ( ! is_orig )
		software$host_p = c$id$resp_p;

	Software::found(c$id, software);
	}
