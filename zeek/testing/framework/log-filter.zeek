# @TEST-DOC: Filters know fields by the names that the log shows: plain ones at startup, and those from log_filter.
#
# @TEST-EXEC: ${SCRIPTS}/flows flows.pcap "tcp 10.0.0.1:1000 10.0.0.2:80 0 1"
# @TEST-EXEC: zeek -C -r flows.pcap ${PACKAGE} %INPUT 2> output
# @TEST-EXEC: grep -o "Zeek Agent:.*" output > warnings
# @TEST-EXEC: btest-diff warnings
# @TEST-EXEC-FAIL: zeek -C -r flows.pcap ${PACKAGE} wrong.zeek 2> output
# @TEST-EXEC: grep -o "Zeek Agent:.*" output | sort > errors
# @TEST-EXEC: for log in zeek-agent-processes default-processes zeek-agent-listening-ports zeek-agent-ssh-configs zeek-agent-users zeek-agent-sockets zeek-agent-files renamed; do echo $log; grep -v '^#[socet]' $log.log | grep -v '#path'; done > logs
# @TEST-EXEC: btest-diff logs
# @TEST-EXEC: btest-diff errors

event zeek_init() &priority=-10
	{
	# The filter that the log has already, with less.
	local filter = Log::get_filter(ZeekAgent_Processes::LOG, "default");
	filter$exclude = set("cmdline", "host");
	Log::add_filter(ZeekAgent_Processes::LOG, ZeekAgent::log_filter(ZeekAgent_Processes::LOG, filter));

	# Zeek's own names work as before.
	Log::add_filter(ZeekAgent_Processes::LOG, Log::Filter($name="stock", $path="default-processes",
	    $include=set("hid", "columns.pid"), $field_name_map=ZeekAgent::log_column_map(ZeekAgent_Processes::Columns, "columns.")));

	Log::add_filter(ZeekAgent_ListeningPorts::LOG, ZeekAgent::log_filter(ZeekAgent_ListeningPorts::LOG,
	    Log::Filter($name="default", $include=set("hid", "port", "columns.exe"))));
	Log::add_filter(ZeekAgent_SSH::LOG_CONFIGS, ZeekAgent::log_filter(ZeekAgent_SSH::LOG_CONFIGS,
	    Log::Filter($name="default", $exclude=set("columns.option_.value", "t"))));
	Log::add_filter(ZeekAgent_Processes::LOG, ZeekAgent::log_filter(ZeekAgent_Processes::LOG,
	    Log::Filter($name="renamed", $path="renamed", $include=set("pid", "cmdline"), $field_name_map=table(["cmdline"] = "command"))));

	Log::add_filter(ZeekAgent_Users::LOG, ZeekAgent::log_filter(ZeekAgent_Users::LOG,
	    Log::Filter($name="default", $exclude=set("columns"))));

	# A plain filter of startup.
	Log::add_filter(ZeekAgent_Sockets::LOG, Log::Filter($name="default", $exclude=set("local_addr", "host")));
	Log::add_filter(ZeekAgent_Files::LOG, Log::Filter($name="default", $include=set("path", "hid", "columns.type")));
	}

event zeek_init() &priority=-2000
	{
	local t = double_to_time(1600000000.0);
	Log::write(ZeekAgent_Processes::LOG, ZeekAgent_Processes::Info($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_Processes::Columns($name="x", $pid=7, $cmdline="secret", $exe="/bin/x")));
	Log::write(ZeekAgent_ListeningPorts::LOG, ZeekAgent_ListeningPorts::Info($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_ListeningPorts::Columns($pid=7, $port_=80, $exe="/bin/x")));
	Log::write(ZeekAgent_SSH::LOG_CONFIGS, ZeekAgent_SSH::InfoConfigs($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_SSH::ColumnsConfigs($path="/etc/x", $number=1,
	    $option_=ZeekAgent_SSH::ConfigOption($key="Port", $value="secret"))));
	Log::write(ZeekAgent_Users::LOG, ZeekAgent_Users::Info($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_Users::Columns($name="secret")));
	Log::write(ZeekAgent_Sockets::LOG, ZeekAgent_Sockets::Info($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_Sockets::Columns($pid=7, $local_addr=10.0.0.1)));
	Log::write(ZeekAgent_Files::LOG, ZeekAgent_Files::Info($t=t, $hid="H", $host="alpha",
	    $columns=ZeekAgent_Files::Columns($path="/etc/x", $uid=7)));
	terminate();
	}

# @TEST-START-FILE wrong.zeek
event zeek_init() &priority=-10
	{
	ZeekAgent::log_filter(ZeekAgent_Processes::LOG, Log::Filter($name="typo", $exclude=set("cmd_line")));
	ZeekAgent::log_filter(ZeekAgent_Processes::LOG, Log::Filter($name="typo", $include=set("", "col", "pid.")));
	ZeekAgent::log_filter(Conn::LOG, Log::Filter($name="other"));
	}
# @TEST-END-FILE
