"""Entry point for systemd's socket activation: watches files for the connection that is standard input."""

from __future__ import annotations

import os
import socket
import sys

from zeek_agent.files_helper.serve import serve


def main() -> int:
    """Watch until the agent closes the connection. Returns the exit code."""
    try:
        channel = socket.socket(fileno=os.dup(0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    except OSError:
        sys.stderr.write("zeek_agent.files_helper is started by zeek-agent-files.socket\n")
        return 2
    from zeek_agent.containment import seccomp
    from zeek_agent.containment.accounts import worker_account

    account = worker_account() if os.geteuid() == 0 else None
    try:
        machine = seccomp.architecture()
        seccomp.require(machine)
        code = seccomp.packed(seccomp.compiled(seccomp.file_watcher_rules(), machine))
    except seccomp.Unavailable:
        code = b""  # the unit has a filter of its own
    try:
        serve(channel, None if account is None else (account.uid, account.gid), code)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot watch files: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
