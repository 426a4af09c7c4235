#!/usr/bin/env bash
# Sets up everything that running and testing need, from a clone: system packages (as root, on Debian and Ubuntu),
# the virtual environment in .venv, the BPF objects, and the package itself. Does nothing that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin  # where ldconfig and nft are, also for users
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/.ready

say() { printf 'setup: %s\n' "$*" >&2; }

# command or header that shows a package is there : package
wanted=(
    "clang:clang"
    "/usr/include/bpf/bpf_helpers.h:libbpf-dev"
    "ip:iproute2"
    "ps:procps"
    "openssl:openssl"
    "nft:nftables"
    "mkfs.btrfs:btrfs-progs"
)

missing_packages() {
    local entry probe
    for entry in "${wanted[@]}"; do
        probe=${entry%%:*}
        if [[ $probe == /* ]]; then [[ -e $probe ]] || echo "${entry##*:}"; else command -v "$probe" >/dev/null || echo "${entry##*:}"; fi
    done
    [[ $(ldconfig -p 2>/dev/null) == *'libbpf.so.1 '* ]] || echo libbpf1
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $(id -u) -ne 0 ]]; then
        say "not root, so these packages are not installed: ${missing[*]}"
        say "without clang, libbpf-dev and libbpf1 the agent records events by polling instead of eBPF"
    elif ! command -v apt-get >/dev/null; then
        say "no apt-get here; install these yourself: ${missing[*]}"
    else
        say "installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or later is needed, this is $("$python" -V)"; exit 1; }
install_packages
if [[ ! -x $venv/bin/pip ]]; then
    "$python" -m venv "$venv" || { say "could not make $venv: install python3-venv"; exit 1; }
fi
if [[ ! -e $stamp || requirements.lock -nt $stamp || pyproject.toml -nt $stamp || hatch_build.py -nt $stamp ]]; then
    say "installing Python packages"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    touch "$stamp"
fi
"$venv/bin/python" hatch_build.py
