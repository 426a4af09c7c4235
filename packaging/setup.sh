#!/usr/bin/env bash
# Sets up everything that running and testing need, from a clone: system packages (as root, on Debian and Ubuntu),
# the virtual environment in .venv, the BPF objects, and the package itself. Does nothing that is done already.
#
# Prints one line per problem. What the commands print is in .venv/setup.log.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin  # where ldconfig and nft are, also for users
venv=.venv
stamp=$venv/.ready
log=$venv/setup.log

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# command or header that shows a package is there : package
wanted=(
    "clang:clang"
    "/usr/include/bpf/bpf_helpers.h:libbpf-dev"
    "git:git"
    "make:make"
    "ip:iproute2"
    "ps:procps"
    "openssl:openssl"
    "nft:nftables"
    "mkfs.btrfs:btrfs-progs"
)

# The first Python that is recent enough.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

missing_packages() {
    local entry probe
    for entry in "${wanted[@]}"; do
        probe=${entry%%:*}
        if [[ $probe == /* ]]; then [[ -e $probe ]] || echo "${entry##*:}"; else command -v "$probe" >/dev/null || echo "${entry##*:}"; fi
    done
    [[ $(ldconfig -p 2>/dev/null) == *'libbpf.so.1 '* ]] || echo libbpf1
}

# The package of ensurepip, if the virtual environment has yet to be made and Python lacks it.
missing_venv() {
    [[ -x $venv/bin/pip ]] || "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$(basename "$python")-venv"
}

# Sets $missing to what could not be installed.
install_packages() {
    mapfile -t missing < <(missing_packages; missing_venv)
    if [[ ${#missing[@]} -eq 0 ]]; then
        return
    elif [[ $(id -u) -ne 0 ]]; then
        say "not installed, because only root can: ${missing[*]}$(consequence)"
    elif ! command -v apt-get >/dev/null; then
        say "there is no apt-get here, install these yourself: ${missing[*]}$(consequence)"
    else
        say "installing ${missing[*]}"
        if (export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}") >>"$log" 2>&1; then
            missing=()
        else
            mapfile -t missing < <(missing_packages; missing_venv)
            say "apt-get failed (see $log), still missing: ${missing[*]}$(consequence)"
        fi
    fi
}

# What does not work without the packages in $missing.
consequence() {
    if [[ " ${missing[*]} " == *-venv\ * ]]; then
        echo "; $(missing_venv) is needed: apt install $(missing_venv)"
    elif [[ " ${missing[*]} " =~ \ (clang|libbpf-dev|libbpf1)\  ]]; then
        echo "; without ${BASH_REMATCH[1]} events are found by polling instead of eBPF"
    fi
}

# Compiles the eBPF programs. Objects that are older than their sources, and cannot be compiled here, are removed.
compile_programs() {
    local object source removed=()
    if [[ ! " ${missing[*]} " =~ \ (clang|libbpf-dev)\  ]]; then
        "$venv/bin/python" hatch_build.py >>"$log" 2>&1 || fail "cannot compile the eBPF programs: $(tail -n 1 "$log") (see $log)"
        return
    fi
    for object in src/zeek_agent/bpf/*.bpf.o; do
        for source in src/zeek_agent/bpf/*.[ch]; do
            if [[ -e $object && $source -nt $object ]]; then
                rm -f "$object"
                removed+=("${object##*/}")
            fi
        done
    done
    [[ ${#removed[@]} -eq 0 ]] || say "removed, because older than their sources: ${removed[*]}"
}

install_python_packages() {
    local pip=("$venv/bin/pip" install --quiet --disable-pip-version-check)
    "${pip[@]}" --require-hashes -r requirements.lock &&
        "${pip[@]}" --no-deps --no-build-isolation -e . &&
        touch "$stamp"
}

is_current() {
    [[ -e $stamp && ! requirements.lock -nt $stamp && ! pyproject.toml -nt $stamp && ! hatch_build.py -nt $stamp ]]
}

python=$(find_python)
[[ -n $python ]] || fail "Python 3.11 or later is needed: apt install python3 python3-venv (or set PYTHON)"
if [[ -w . ]] && mkdir -p "$venv" && [[ -w $venv ]]; then
    : >>"$log" || fail "cannot write $PWD/$log: remove it"
    if command -v flock >/dev/null; then  # one at a time, as for `make run` and `make test` in two terminals
        exec 9>"$venv/.setup.lock"
        flock 9
    fi
elif is_current; then
    log=/dev/null
else
    fail "$PWD/$venv is another user's: clone the repository into a directory of your own"
fi
install_packages
[[ -z $(missing_venv) ]] || exit 1
if [[ ! -x $venv/bin/pip ]]; then
    "$python" -m venv "$venv" >>"$log" 2>&1 || fail "cannot make $venv (see $log)"
fi
if ! is_current; then
    say "installing Python packages"
    install_python_packages >>"$log" 2>&1 ||
        fail "cannot install Python packages: $(grep -v '^ *$' "$log" | tail -n 1) (see $log)"
fi
compile_programs
