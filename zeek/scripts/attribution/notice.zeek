##! Adds the process at each endpoint of a connection to notices about it.

@load base/frameworks/notice
@load ./conn

module ZeekAgent;

redef record Notice::Info += {
	## Id of the agent on the originator's host.
	orig_hid: string &log &optional;
	## Name of the originator's process.
	orig_process: string &log &optional;
	## Path of its executable.
	orig_exe: string &log &optional;
	## Name of its user.
	orig_user: string &log &optional;
	## Id of the agent on the responder's host.
	resp_hid: string &log &optional;
	## Name of the responder's process.
	resp_process: string &log &optional;
	## Path of its executable.
	resp_exe: string &log &optional;
	## Name of its user.
	resp_user: string &log &optional;
};

hook Notice::notice(n: Notice::Info) &priority=5
	{
	if ( ! n?$conn )
		return;

	local orig = process_of(n$conn, T);
	local resp = process_of(n$conn, F);

	if ( orig?$hid )
		{
		n$orig_hid = orig$hid;

		if ( orig?$process )
			n$orig_process = orig$process;

		if ( orig?$exe )
			n$orig_exe = orig$exe;

		if ( orig?$uid )
			n$orig_user = user_label(orig);
		}

	if ( resp?$hid )
		{
		n$resp_hid = resp$hid;

		if ( resp?$process )
			n$resp_process = resp$process;

		if ( resp?$exe )
			n$resp_exe = resp$exe;

		if ( resp?$uid )
			n$resp_user = user_label(resp);
		}
	}
