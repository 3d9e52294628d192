#!/usr/bin/env bash
# Installs what the tests need and is missing: redis-server, chromium, node, npm, python3, ip and nft from Debian's
# packages (with apt-get, as root or through sudo), the npm packages of tests/js, and those of requirements.txt into
# tests/.venv. Safe to run again; then it only looks.
set -euo pipefail
cd "$(dirname "$0")/js"

missing=()
needs() { # needs COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
needs redis-server redis-server
needs "${CHROMIUM_BIN:-/usr/bin/chromium}" chromium
needs node nodejs
needs npm npm
needs python3 python3
needs ip iproute2
needs nft nftables
# Debian has these two apart from python3 itself.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Quiet unless it fails; then everything that it said.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null 2>&1 || ! as_root true >/dev/null 2>&1; then
        echo "tests/setup.sh: please install: ${missing[*]}" >&2
        echo "(on Debian: apt-get install ${missing[*]}; this script does it itself as root or with sudo)" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    quietly as_root apt-get update -q
    # --no-install-recommends: no desktop around the browser. A Redis of the system is not wanted, only its program.
    quietly as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

major=$(node -p 'process.versions.node.split(".")[0]')
if [ "$major" -lt 20 ]; then
    echo "tests/setup.sh: node $(node --version) is too old for the tests; 20 or newer is needed" >&2
    exit 1
fi

# npm writes this file at the end of an install, so it is older than the lock when that has changed since.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    echo "installing the npm packages of tests/js"
    quietly npm ci --no-audit --no-fund
    touch node_modules/.package-lock.json
fi

# The mark is written at the end, so it is older than the list when that has changed since.
if [ ! -e ../.venv/installed ] || [ ../requirements.txt -nt ../.venv/installed ]; then
    echo "installing the Python packages of tests/requirements.txt"
    quietly python3 -m venv ../.venv
    quietly ../.venv/bin/pip install --disable-pip-version-check -r ../requirements.txt
    touch ../.venv/installed
fi
