// What the agent uses of osquery's extension interface: Thrift binary protocol, buffered, over a UNIX socket.
// `ExtensionManager` is served by osquery, `Extension` by each extension at `<osquery's socket>.<uuid>`.

typedef map<string, string> Row

struct OptionInfo {
  1: string value,
  2: string default_value,
  3: string type
}

struct ExtensionInfo {
  1: string name,
  2: string version,
  3: string sdk_version,
  4: string min_sdk_version
}

// code 0: done, 1: failed, 2: failed for good
struct Status {
  1: i32 code,
  2: string message,
  3: i64 uuid
}

struct Response {
  1: Status status,
  2: list<Row> response
}

service Extension {
  Status ping(),
  Response call(1: string registry, 2: string item, 3: Row request),
  void shutdown()
}

service ExtensionManager extends Extension {
  map<i64, ExtensionInfo> extensions(),
  map<string, OptionInfo> options(),
  Status registerExtension(1: ExtensionInfo info, 2: map<string, map<string, list<Row>>> registry),
  Status deregisterExtension(1: i64 uuid),
  Response query(1: string sql),
  Response getQueryColumns(1: string sql)
}
