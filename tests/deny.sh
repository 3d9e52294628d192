#!/usr/bin/env bash
# cargo-deny over deny.toml: licences, sources, duplicates; advisories where their database is at hand. Where cargo-deny is
# not installed it says what was not looked at, and ends well: everything else of `make lint` needs Rust alone.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
  echo "not checked: licences, sources and advisories of the packages; cargo install cargo-deny --locked" >&2
  exit 0
fi
cargo deny --locked check --hide-inclusion-graph licenses bans sources
database="${CARGO_HOME:-$HOME/.cargo}/advisory-dbs"
if [ -n "$(ls -A "$database" 2>/dev/null)" ]; then
  cargo deny --locked check --disable-fetch --hide-inclusion-graph advisories
else
  echo "not checked: advisories; there is no database in $database (cargo deny fetch)" >&2
fi
