PRAGMA user_version = 9;
CREATE TABLE _accounts ("table" TEXT PRIMARY KEY, definition TEXT NOT NULL, evicted INTEGER NOT NULL, counted INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE _age_clock (boot_id TEXT NOT NULL, base REAL NOT NULL, at REAL NOT NULL, ahead REAL NOT NULL) STRICT;
CREATE TABLE _ages ("table" TEXT, seq INTEGER, since REAL NOT NULL, at REAL NOT NULL, ahead REAL NOT NULL, PRIMARY KEY ("table", seq)) STRICT, WITHOUT ROWID;
CREATE TABLE _columns ("table" TEXT, name TEXT, type TEXT NOT NULL, PRIMARY KEY ("table", name)) STRICT, WITHOUT ROWID;
CREATE TABLE "_delivered" (key TEXT PRIMARY KEY, seqs TEXT NOT NULL, snapshot BLOB, under_way TEXT NOT NULL, time REAL NOT NULL, owner TEXT NOT NULL DEFAULT '', incarnation TEXT NOT NULL DEFAULT '', steps TEXT NOT NULL DEFAULT '[]', shape TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID;
CREATE TABLE _gaps (source TEXT, "from" REAL, until REAL, cause TEXT) STRICT;
CREATE TABLE _positions ("table" TEXT PRIMARY KEY, position TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE _store (id TEXT NOT NULL, alive REAL NOT NULL, clean INTEGER NOT NULL, written_by TEXT) STRICT;
CREATE TABLE _text_uses (id INTEGER PRIMARY KEY, refs INTEGER NOT NULL) STRICT;
CREATE TABLE _texts (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL) STRICT;
CREATE TABLE _usage ("table" TEXT, producer TEXT, minute INTEGER, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, PRIMARY KEY ("table", producer, minute)) STRICT, WITHOUT ROWID;
CREATE TABLE "dns_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "pid" INTEGER, "process" TEXT, "uid" INTEGER, "query" TEXT, "type" TEXT, "rcode" TEXT, "answers" TEXT, "latency" REAL, "attempts" INTEGER, "truncated" INTEGER, "protocol" INTEGER, "local_addr" TEXT, "local_port" INTEGER, "server_addr" TEXT, "server_port" INTEGER, "via" TEXT, "exe" TEXT, "cmdline" TEXT, "loginuid" INTEGER, "netns" INTEGER, "container_id" TEXT, "entity_id" TEXT, "parent_entity_id" TEXT, "community_id" TEXT, "cookie" INTEGER, "argv" TEXT, "exe_device" INTEGER, "exe_inode" INTEGER, "exe_mntns" INTEGER) STRICT;
CREATE TABLE "files_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "action" TEXT, "path" TEXT, "old_path" TEXT, "type" TEXT, "count" INTEGER, "pid" INTEGER, "process" TEXT, "uid" INTEGER, "gid" INTEGER, "device" INTEGER, "inode" INTEGER, "size" INTEGER, "permissions" TEXT, "sha256" TEXT, "found" INTEGER, "exe" TEXT, "cmdline" TEXT, "loginuid" INTEGER, "session" INTEGER, "container_id" TEXT, "entity_id" TEXT, "parent_entity_id" TEXT, "argv" TEXT, "exe_device" INTEGER, "exe_inode" INTEGER, "exe_mntns" INTEGER) STRICT;
CREATE TABLE "logins_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "action" TEXT, "user" TEXT, "uid" INTEGER, "target_user" TEXT, "tty" TEXT, "remote_addr" TEXT, "remote_port" INTEGER, "pid" INTEGER, "process" TEXT, "session" INTEGER, "entity_id" TEXT, "method" TEXT, "command" TEXT, "outcome" TEXT, "reason" TEXT, "source" TEXT, "verified" INTEGER, "cursor" TEXT) STRICT;
CREATE TABLE "processes_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "name" TEXT, "pid" INTEGER, "ppid" INTEGER, "uid" INTEGER, "gid" INTEGER, "ruid" INTEGER, "rgid" INTEGER, "priority" TEXT, "duration" REAL, "vsize" INTEGER, "rsize" INTEGER, "utime" REAL, "stime" REAL, "state" TEXT, "exe" TEXT, "cmdline" TEXT, "cwd" TEXT, "exit_code" INTEGER, "loginuid" INTEGER, "session" INTEGER, "cgroup" TEXT, "container_id" TEXT, "netns" INTEGER, "entity_id" TEXT, "parent_entity_id" TEXT, "parent_name" TEXT, "parent_exe" TEXT, "argv" TEXT, "exe_device" INTEGER, "exe_inode" INTEGER, "exe_mntns" INTEGER, "found_running" INTEGER, "user" TEXT, "sid" TEXT) STRICT;
CREATE TABLE "sockets_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "pid" INTEGER, "process" TEXT, "uid" INTEGER, "gid" INTEGER, "family" TEXT, "protocol" INTEGER, "local_addr" TEXT, "local_port" INTEGER, "remote_addr" TEXT, "remote_port" INTEGER, "state" TEXT, "direction" TEXT, "exe" TEXT, "cmdline" TEXT, "loginuid" INTEGER, "cookie" INTEGER, "netns" INTEGER, "container_id" TEXT, "entity_id" TEXT, "parent_entity_id" TEXT, "community_id" TEXT, "listener_stands_in" INTEGER, "translated_local_addr" TEXT, "translated_local_port" INTEGER, "translated_remote_addr" TEXT, "translated_remote_port" INTEGER, "argv" TEXT, "mptcp_token" INTEGER, "correction" INTEGER, "exe_device" INTEGER, "exe_inode" INTEGER, "exe_mntns" INTEGER, "duration" REAL, "bytes_sent" INTEGER, "bytes_received" INTEGER, "packets_sent" INTEGER, "packets_received" INTEGER, "receive_drops" INTEGER, "remote_name" TEXT, "user" TEXT, "sid" TEXT) STRICT;
CREATE TABLE "system_logs_events" (seq INTEGER PRIMARY KEY AUTOINCREMENT, "time" REAL, "process" TEXT, "level" TEXT, "message" TEXT, "eventid" TEXT, "pid" INTEGER, "uid" INTEGER, "exe" TEXT, "unit" TEXT, "identifier" TEXT, "facility" INTEGER, "cursor" TEXT) STRICT;
INSERT INTO "_accounts" VALUES ('dns_events', 'CASE WHEN loginuid < 4294967295 THEN ''loginuid '' || loginuid WHEN container_id <> '''' THEN ''container '' || substr(container_id, 1, 200) WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
108 + ifnull(octet_length("query"), 0) + ifnull(octet_length("type"), 0) + ifnull(octet_length("rcode"), 0) + ifnull(octet_length("answers"), 0) + ifnull(octet_length("server_addr"), 0) + ifnull(octet_length("via"), 0) + CASE WHEN "exe" >= ''􏿿'' THEN CAST(substr("exe", instr("exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("exe"), 0) END + CASE WHEN "cmdline" >= ''􏿿'' THEN CAST(substr("cmdline", instr("cmdline", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cmdline"), 0) END + CASE WHEN "argv" >= ''􏿿'' THEN CAST(substr("argv", instr("argv", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("argv"), 0) END', 0, 0);
INSERT INTO "_accounts" VALUES ('files_events', 'CASE WHEN loginuid < 4294967295 THEN ''loginuid '' || loginuid WHEN container_id <> '''' THEN ''container '' || substr(container_id, 1, 200) WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
96 + ifnull(octet_length("action"), 0) + ifnull(octet_length("path"), 0) + ifnull(octet_length("old_path"), 0) + ifnull(octet_length("type"), 0) + ifnull(octet_length("permissions"), 0) + ifnull(octet_length("sha256"), 0) + CASE WHEN "exe" >= ''􏿿'' THEN CAST(substr("exe", instr("exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("exe"), 0) END + CASE WHEN "cmdline" >= ''􏿿'' THEN CAST(substr("cmdline", instr("cmdline", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cmdline"), 0) END + CASE WHEN "argv" >= ''􏿿'' THEN CAST(substr("argv", instr("argv", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("argv"), 0) END', 0, 0);
INSERT INTO "_accounts" VALUES ('logins_events', 'CASE WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
60 + ifnull(octet_length("action"), 0) + ifnull(octet_length("user"), 0) + ifnull(octet_length("target_user"), 0) + ifnull(octet_length("tty"), 0) + ifnull(octet_length("method"), 0) + ifnull(octet_length("command"), 0) + ifnull(octet_length("outcome"), 0) + ifnull(octet_length("reason"), 0) + ifnull(octet_length("source"), 0) + ifnull(octet_length("cursor"), 0)', 0, 0);
INSERT INTO "_accounts" VALUES ('processes_events', 'CASE WHEN loginuid < 4294967295 THEN ''loginuid '' || loginuid WHEN container_id <> '''' THEN ''container '' || substr(container_id, 1, 200) WHEN uid = 0 AND cgroup <> '''' THEN ''cgroup '' || substr(CASE WHEN cgroup >= ''􏿿'' THEN (SELECT text FROM main._texts WHERE "cgroup" >= ''􏿿'' AND id = CAST(substr("cgroup", 2) AS INTEGER) UNION ALL SELECT "cgroup") ELSE cgroup END, 1, 200) WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
132 + CASE WHEN "exe" >= ''􏿿'' THEN CAST(substr("exe", instr("exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("exe"), 0) END + CASE WHEN "cmdline" >= ''􏿿'' THEN CAST(substr("cmdline", instr("cmdline", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cmdline"), 0) END + CASE WHEN "cwd" >= ''􏿿'' THEN CAST(substr("cwd", instr("cwd", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cwd"), 0) END + CASE WHEN "cgroup" >= ''􏿿'' THEN CAST(substr("cgroup", instr("cgroup", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cgroup"), 0) END + CASE WHEN "parent_exe" >= ''􏿿'' THEN CAST(substr("parent_exe", instr("parent_exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("parent_exe"), 0) END + CASE WHEN "argv" >= ''􏿿'' THEN CAST(substr("argv", instr("argv", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("argv"), 0) END + ifnull(octet_length("user"), 0) + ifnull(octet_length("sid"), 0)', 0, 0);
INSERT INTO "_accounts" VALUES ('sockets_events', 'CASE WHEN loginuid < 4294967295 THEN ''loginuid '' || loginuid WHEN container_id <> '''' THEN ''container '' || substr(container_id, 1, 200) WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
168 + CASE WHEN "exe" >= ''􏿿'' THEN CAST(substr("exe", instr("exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("exe"), 0) END + CASE WHEN "cmdline" >= ''􏿿'' THEN CAST(substr("cmdline", instr("cmdline", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("cmdline"), 0) END + CASE WHEN "argv" >= ''􏿿'' THEN CAST(substr("argv", instr("argv", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("argv"), 0) END + ifnull(octet_length("remote_name"), 0) + ifnull(octet_length("user"), 0) + ifnull(octet_length("sid"), 0)', 0, 0);
INSERT INTO "_accounts" VALUES ('system_logs_events', 'CASE WHEN uid < 65536 THEN ''uid '' || uid WHEN uid >= 65536 THEN ''uids from '' || (uid / 65536 * 65536) ELSE ''unknown'' END
CAST(ifnull(time, 0) / 60 AS INTEGER)
52 + ifnull(octet_length("message"), 0) + CASE WHEN "exe" >= ''􏿿'' THEN CAST(substr("exe", instr("exe", '':'') + 1) AS INTEGER) ELSE ifnull(octet_length("exe"), 0) END + ifnull(octet_length("unit"), 0) + ifnull(octet_length("identifier"), 0) + ifnull(octet_length("cursor"), 0)', 0, 0);
INSERT INTO "_age_clock" VALUES ('of this clock', 0.0, 1790000000.0, 0.0);
INSERT INTO "_columns" VALUES ('dns_events', 'answers', 'vector[text]');
INSERT INTO "_columns" VALUES ('dns_events', 'argv', 'vector[text]');
INSERT INTO "_columns" VALUES ('dns_events', 'attempts', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'cmdline', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'community_id', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'container_id', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'cookie', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'entity_id', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'exe', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'exe_device', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'exe_inode', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'exe_mntns', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'latency', 'interval');
INSERT INTO "_columns" VALUES ('dns_events', 'local_addr', 'address');
INSERT INTO "_columns" VALUES ('dns_events', 'local_port', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'loginuid', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'netns', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'parent_entity_id', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'process', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'protocol', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'query', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'rcode', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'server_addr', 'address');
INSERT INTO "_columns" VALUES ('dns_events', 'server_port', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('dns_events', 'truncated', 'bool');
INSERT INTO "_columns" VALUES ('dns_events', 'type', 'text');
INSERT INTO "_columns" VALUES ('dns_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('dns_events', 'via', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'action', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'argv', 'vector[text]');
INSERT INTO "_columns" VALUES ('files_events', 'cmdline', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'container_id', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'count', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'device', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'entity_id', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'exe', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'exe_device', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'exe_inode', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'exe_mntns', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'found', 'bool');
INSERT INTO "_columns" VALUES ('files_events', 'gid', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'inode', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'loginuid', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'old_path', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'parent_entity_id', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'path', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'permissions', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'process', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'session', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'sha256', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'size', 'count');
INSERT INTO "_columns" VALUES ('files_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('files_events', 'type', 'text');
INSERT INTO "_columns" VALUES ('files_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('logins_events', 'action', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'command', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'cursor', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'entity_id', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'method', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'outcome', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('logins_events', 'process', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'reason', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'remote_addr', 'address');
INSERT INTO "_columns" VALUES ('logins_events', 'remote_port', 'count');
INSERT INTO "_columns" VALUES ('logins_events', 'session', 'count');
INSERT INTO "_columns" VALUES ('logins_events', 'source', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'target_user', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('logins_events', 'tty', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('logins_events', 'user', 'text');
INSERT INTO "_columns" VALUES ('logins_events', 'verified', 'bool');
INSERT INTO "_columns" VALUES ('processes_events', 'argv', 'vector[text]');
INSERT INTO "_columns" VALUES ('processes_events', 'cgroup', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'cmdline', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'container_id', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'cwd', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'duration', 'interval');
INSERT INTO "_columns" VALUES ('processes_events', 'entity_id', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'exe', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'exe_device', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'exe_inode', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'exe_mntns', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'exit_code', 'int');
INSERT INTO "_columns" VALUES ('processes_events', 'found_running', 'bool');
INSERT INTO "_columns" VALUES ('processes_events', 'gid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'loginuid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'name', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'netns', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'parent_entity_id', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'parent_exe', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'parent_name', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'ppid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'priority', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'rgid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'rsize', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'ruid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'session', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'sid', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'state', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'stime', 'interval');
INSERT INTO "_columns" VALUES ('processes_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('processes_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('processes_events', 'user', 'text');
INSERT INTO "_columns" VALUES ('processes_events', 'utime', 'interval');
INSERT INTO "_columns" VALUES ('processes_events', 'vsize', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'argv', 'vector[text]');
INSERT INTO "_columns" VALUES ('sockets_events', 'bytes_received', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'bytes_sent', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'cmdline', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'community_id', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'container_id', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'cookie', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'correction', 'bool');
INSERT INTO "_columns" VALUES ('sockets_events', 'direction', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'duration', 'interval');
INSERT INTO "_columns" VALUES ('sockets_events', 'entity_id', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'exe', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'exe_device', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'exe_inode', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'exe_mntns', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'family', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'gid', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'listener_stands_in', 'bool');
INSERT INTO "_columns" VALUES ('sockets_events', 'local_addr', 'address');
INSERT INTO "_columns" VALUES ('sockets_events', 'local_port', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'loginuid', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'mptcp_token', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'netns', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'packets_received', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'packets_sent', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'parent_entity_id', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'process', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'protocol', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'receive_drops', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'remote_addr', 'address');
INSERT INTO "_columns" VALUES ('sockets_events', 'remote_name', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'remote_port', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'sid', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'state', 'text');
INSERT INTO "_columns" VALUES ('sockets_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('sockets_events', 'translated_local_addr', 'address');
INSERT INTO "_columns" VALUES ('sockets_events', 'translated_local_port', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'translated_remote_addr', 'address');
INSERT INTO "_columns" VALUES ('sockets_events', 'translated_remote_port', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('sockets_events', 'user', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'cursor', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'eventid', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'exe', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'facility', 'count');
INSERT INTO "_columns" VALUES ('system_logs_events', 'identifier', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'level', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'message', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'pid', 'count');
INSERT INTO "_columns" VALUES ('system_logs_events', 'process', 'text');
INSERT INTO "_columns" VALUES ('system_logs_events', 'time', 'time');
INSERT INTO "_columns" VALUES ('system_logs_events', 'uid', 'count');
INSERT INTO "_columns" VALUES ('system_logs_events', 'unit', 'text');
INSERT INTO "_delivered" VALUES ('differences', '{}', X'0061207061636B656420736E617073686F74FF', '{}', 1790000000.0, '', '', '[]', '');
INSERT INTO "_delivered" VALUES ('events of all tables', '{"processes_events": 4, "sockets_events": 4, "dns_events": 4, "files_events": 4, "logins_events": 4, "system_logs_events": 4}', NULL, '{}', 1790000000.0, '', '', '[]', '');
INSERT INTO "_delivered" VALUES ('events with a report of known shape', '{"processes_events": 3}', NULL, '{"processes_events": 5}', 1790000000.0, '', '', '[]', '2 300 100');
INSERT INTO "_delivered" VALUES ('events with a report under way', '{"processes_events": 3}', NULL, '{"processes_events": 5}', 1790000000.0, '', '', '[]', '');
INSERT INTO "_delivered" VALUES ('events with recent progress', '{"processes_events": 5}', NULL, '{}', 1790000000.0, 'ws://zeek:1', 'zeek_1', '[[1789999990.0, {"processes_events": 3}], [1789999999.0, {"processes_events": 4}]]', '');
INSERT INTO "_gaps" VALUES ('processes', 1789999950.0, 1789999960.0, 'overrun');
INSERT INTO "_positions" VALUES ('processes_events', 'a position in a followed file');
INSERT INTO "_store" VALUES ('0123456789abcdef', 1790000000.0, 1, '3.0.0');
INSERT INTO "dns_events" VALUES (3, 1789999902.0, 0, NULL, 9223372036854775807, '/usr/bin/true', 'Grüße, 世界', NULL, '', 0.25, 9223372036854775807, NULL, 4294967295, '::ffff:192.0.2.1', 0, NULL, 9223372036854775807, '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 'Grüße, 世界', 'raw , quote '', new
line', 0, NULL, 9223372036854775807, 0, 4294967295);
INSERT INTO "dns_events" VALUES (4, 1789999903.0, NULL, 'raw , quote '', new
line', 0, 'Grüße, 世界', NULL, '/usr/bin/true', '["/bin/sh","-c","a b"]', 86400.0, NULL, 0, 9223372036854775807, '192.0.2.1', NULL, '::ffff:192.0.2.1', 0, 'Grüße, 世界', NULL, '/usr/bin/true', 4294967295, 9223372036854775807, NULL, 'Grüße, 世界', 'raw , quote '', new
line', '/usr/bin/true', NULL, '["/usr/bin/true"]', 0, 4294967295, NULL);
INSERT INTO "dns_events" VALUES (5, 1789999904.0, 9223372036854775807, '/usr/bin/true', 4294967295, NULL, '/usr/bin/true', 'Grüße, 世界', '["/usr/bin/true"]', NULL, 4294967295, 1, 0, NULL, 9223372036854775807, '192.0.2.1', 4294967295, NULL, '/usr/bin/true', 'Grüße, 世界', 9223372036854775807, NULL, 'Grüße, 世界', 'raw , quote '', new
line', '/usr/bin/true', NULL, 9223372036854775807, '', 4294967295, NULL, 0);
INSERT INTO "files_events" VALUES (3, 1789999902.0, '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 4294967295, NULL, '/usr/bin/true', 4294967295, 9223372036854775807, NULL, 4294967295, 9223372036854775807, '/usr/bin/true', NULL, 1, '/usr/bin/true', 'Grüße, 世界', NULL, 0, 'Grüße, 世界', 'raw , quote '', new
line', NULL, '["/bin/sh","-c","a b"]', 9223372036854775807, 0, NULL);
INSERT INTO "files_events" VALUES (4, 1789999903.0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 'Grüße, 世界', 9223372036854775807, NULL, 4294967295, 9223372036854775807, 0, NULL, 'raw , quote '', new
line', 1, 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 'Grüße, 世界', '["/usr/bin/true"]', 0, NULL, 9223372036854775807);
INSERT INTO "files_events" VALUES (5, 1789999904.0, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 4294967295, 9223372036854775807, 0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 0, NULL, '/usr/bin/true', 4294967295, 9223372036854775807, NULL, 'Grüße, 世界', 'raw , quote '', new
line', '', NULL, 9223372036854775807, 0);
INSERT INTO "logins_events" VALUES (3, 1789999902.0, '/usr/bin/true', NULL, 9223372036854775807, '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 'Grüße, 世界', 'raw , quote '', new
line', '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 0, NULL);
INSERT INTO "logins_events" VALUES (4, 1789999903.0, NULL, 'raw , quote '', new
line', 0, 'Grüße, 世界', NULL, '192.0.2.1', 4294967295, 9223372036854775807, NULL, 4294967295, 'raw , quote '', new
line', '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, '/usr/bin/true');
INSERT INTO "logins_events" VALUES (5, 1789999904.0, 'raw , quote '', new
line', '/usr/bin/true', 4294967295, NULL, '/usr/bin/true', '2001:db8::1', 9223372036854775807, NULL, 'Grüße, 世界', 9223372036854775807, '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 1, 'Grüße, 世界');
INSERT INTO "processes_events" VALUES (3, 1789999902.0, '/usr/bin/true', NULL, 9223372036854775807, 0, 4294967295, NULL, 0, 'Grüße, 世界', 86400.0, NULL, 4294967295, 86400.0, 0.0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 4294967295, 'raw , quote '', new
line', '/usr/bin/true', NULL, 'raw , quote '', new
line', '', 4294967295, NULL, 0, 0, 'raw , quote '', new
line', NULL);
INSERT INTO "processes_events" VALUES (4, 1789999903.0, NULL, 9223372036854775807, 0, 4294967295, NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 4294967295, 9223372036854775807, 0.0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, -11, 4294967295, 9223372036854775807, NULL, 'Grüße, 世界', 9223372036854775807, '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', '["/bin/sh","-c","a b"]', NULL, 0, 4294967295, 1, NULL, 'Grüße, 世界');
INSERT INTO "processes_events" VALUES (5, 1789999904.0, 'raw , quote '', new
line', 0, 4294967295, NULL, 0, 4294967295, 9223372036854775807, NULL, 0.25, 9223372036854775807, 0, NULL, 86400.0, '/usr/bin/true', 'Grüße, 世界', NULL, '/usr/bin/true', 0, 9223372036854775807, NULL, 'Grüße, 世界', 'raw , quote '', new
line', 0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 9223372036854775807, NULL, 'Grüße, 世界', 'raw , quote '', new
line');
INSERT INTO "sockets_events" VALUES (3, 1789999902.0, 0, NULL, 9223372036854775807, 0, 'Grüße, 世界', NULL, '192.0.2.1', 4294967295, '::ffff:192.0.2.1', NULL, 'Grüße, 世界', 'raw , quote '', new
line', '/usr/bin/true', NULL, 9223372036854775807, 0, 4294967295, NULL, '/usr/bin/true', 'Grüße, 世界', 'raw , quote '', new
line', NULL, '2001:db8::1', 9223372036854775807, '192.0.2.1', NULL, '["/usr/bin/true"]', 0, 0, NULL, 0, 4294967295, 86400.0, NULL, 4294967295, 9223372036854775807, 0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界');
INSERT INTO "sockets_events" VALUES (4, 1789999903.0, NULL, 'raw , quote '', new
line', 0, 4294967295, NULL, 0, '2001:db8::1', 9223372036854775807, NULL, 4294967295, 'raw , quote '', new
line', '/usr/bin/true', NULL, 'raw , quote '', new
line', 0, 4294967295, NULL, '/usr/bin/true', 'Grüße, 世界', 'raw , quote '', new
line', NULL, 0, '::ffff:192.0.2.1', 0, NULL, 9223372036854775807, '', 4294967295, NULL, 0, 4294967295, 9223372036854775807, NULL, 4294967295, 9223372036854775807, 0, NULL, 9223372036854775807, '/usr/bin/true', 'Grüße, 世界', NULL);
INSERT INTO "sockets_events" VALUES (5, 1789999904.0, 9223372036854775807, '/usr/bin/true', 4294967295, NULL, '/usr/bin/true', 4294967295, '::ffff:192.0.2.1', NULL, '2001:db8::1', 9223372036854775807, '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 4294967295, NULL, 0, 'Grüße, 世界', 'raw , quote '', new
line', NULL, 'Grüße, 世界', 1, '192.0.2.1', NULL, '::ffff:192.0.2.1', 0, '["/bin/sh","-c","a b"]', NULL, 1, 4294967295, 9223372036854775807, NULL, 0.25, 9223372036854775807, 0, NULL, 9223372036854775807, 0, 'Grüße, 世界', NULL, '/usr/bin/true');
INSERT INTO "system_logs_events" VALUES (3, 1789999902.0, '/usr/bin/true', NULL, 'raw , quote '', new
line', '/usr/bin/true', 4294967295, NULL, '/usr/bin/true', 'Grüße, 世界', 'raw , quote '', new
line', NULL, 'Grüße, 世界');
INSERT INTO "system_logs_events" VALUES (4, 1789999903.0, NULL, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 'Grüße, 世界', 'raw , quote '', new
line', NULL, 4294967295, 'raw , quote '', new
line');
INSERT INTO "system_logs_events" VALUES (5, 1789999904.0, 'raw , quote '', new
line', '/usr/bin/true', 'Grüße, 世界', NULL, 0, 4294967295, 'raw , quote '', new
line', NULL, 'Grüße, 世界', 9223372036854775807, '/usr/bin/true');
DELETE FROM sqlite_sequence;
INSERT INTO "sqlite_sequence" VALUES ('dns_events', 5);
INSERT INTO "sqlite_sequence" VALUES ('files_events', 5);
INSERT INTO "sqlite_sequence" VALUES ('logins_events', 5);
INSERT INTO "sqlite_sequence" VALUES ('processes_events', 5);
INSERT INTO "sqlite_sequence" VALUES ('sockets_events', 5);
INSERT INTO "sqlite_sequence" VALUES ('system_logs_events', 5);
