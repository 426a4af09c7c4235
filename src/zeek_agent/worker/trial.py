"""Locks down this process as a worker of one class and prints what holds then: a trial for `zeek-agent doctor`.

Arguments are the class, uid and gid of the user to become (or two dashes), and for a collector its log directory.
"""

from __future__ import annotations

import os
import sys

import msgspec

from zeek_agent.containment.lockdown import lock_down
from zeek_agent.containment.protections import LockdownError, WorkerAccount, WorkerClass


def main() -> None:
    kind, uid, gid, *directory = sys.argv[1:]
    try:
        protections = lock_down(
            WorkerClass(kind),
            parent=os.getppid(),
            account=None if uid == "-" else WorkerAccount(int(uid), int(gid)),
            log_directory=directory[0] if directory else None,
        )
    except (LockdownError, OSError) as error:
        sys.exit(str(error))
    os.write(sys.stdout.fileno(), msgspec.json.encode(protections))
    os._exit(0)


if __name__ == "__main__":
    main()
