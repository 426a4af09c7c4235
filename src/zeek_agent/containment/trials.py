"""The protections of worker processes on this host, found by locking down a process of each class."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from zeek_agent.containment import own_code
from zeek_agent.containment.accounts import directory_owner, worker_account
from zeek_agent.containment.protections import Protections, WorkerAccount, WorkerClass

TRIAL_SECONDS: Final = 20.0

_decode: Final = msgspec.json.Decoder(Protections).decode


def try_all(log_directory: str | None) -> Iterator[tuple[WorkerClass, Protections | str]]:
    """What holds in a worker of each class, or why none can be started.

    A collector's is tried with the log directory, or a temporary one. Raises LockdownError if there is no user for
    workers.
    """
    account = worker_account() if os.geteuid() == 0 else None
    with ExitStack() as stack:
        logs = log_directory or stack.enter_context(TemporaryDirectory(prefix="zeek-agent-doctor-"))
        try:
            trials = {kind: stack.enter_context(_started(kind, account, logs)) for kind in WorkerClass}
        except OSError as error:
            yield from ((kind, f"{error.filename}: {error.strerror}") for kind in WorkerClass)
            return
        for kind, trial in trials.items():
            yield kind, _outcome(trial)


def _started(kind: WorkerClass, account: WorkerAccount | None, logs: str) -> subprocess.Popen[str]:
    arguments = [kind.value]
    if kind is WorkerClass.COLLECTOR and account is not None:
        account = directory_owner(logs)
    arguments += ["-", "-"] if account is None else [str(account.uid), str(account.gid)]
    if kind is WorkerClass.COLLECTOR:
        arguments.append(logs)
    return subprocess.Popen(
        own_code.command("zeek_agent.worker.trial", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        text=True,
    )


def _outcome(trial: subprocess.Popen[str]) -> Protections | str:
    try:
        output, errors = trial.communicate(timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        trial.kill()
        return f"no answer within {TRIAL_SECONDS:g} s"
    if trial.returncode == 0:
        return _decode(output)
    reasons = errors.strip().splitlines()
    return reasons[-1] if reasons else f"exit code {trial.returncode}"
