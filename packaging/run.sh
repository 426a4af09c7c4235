#!/usr/bin/env bash
# Runs the agent of this clone: `make run`. Its state and logs lie in the clone, so that clones share none. ./state and
# ./logs are for the clone's owner, another user has ./state-USER and ./logs-USER. As root, the embedded collector writes
# as the owner of its directory, so the owner of the clone can read ./logs after `sudo make run`.
set -euo pipefail
cd "$(dirname "$0")/.."
program=.venv/bin/zeek-agent
user=$(id -un 2>/dev/null) || user=$(id -u)

say() { printf '%s\n' "$*" >&2; }

own() {
    if [[ ! -O . || (-e $1 && ! -O $1) ]]; then echo "$1-$user"; else echo "$1"; fi
}

state=$(own state)
logs=logs
if [[ $(id -u) -ne 0 ]]; then
    logs=$(own logs)
elif [[ ! -e logs ]]; then
    mkdir logs && chown --reference=. logs
fi
if [[ ! -e $state ]]; then
    (umask 022 && mkdir -m 0711 "$state") 2>/dev/null || {
        say "make run: cannot create $PWD/$state: clone the repository into a directory of your own"
        exit 1
    }
    former=${XDG_STATE_HOME:-$HOME/.local/state}/zeek-agent
    [[ $(id -u) -ne 0 ]] || former=/var/lib/zeek-agent
fi
if [[ $# -eq 0 && -e ${former:-}/events.db ]]; then
    say "events now go to ./$state; to continue in $former: make run ARGS=\"--state-dir $former\""
elif [[ $# -eq 0 ]]; then
    say "in another terminal: $program shell (or status, query); the agent's own log is $state/agent.log"
fi
exec "$program" run --state-dir "$state" --logs "$logs" --set "log.file=$state/agent.log" "$@"
