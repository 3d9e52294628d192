#!/usr/bin/env bash
# Whose work is in the binaries, and under which licences: docs/licences.md, as Cargo knows it. Asks no network.
#
#   tests/licences.sh           writes it anew
#   tests/licences.sh --check   says whether it is out of date, and ends with 1 if it is
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
LIST=docs/licences.md

list() {
  cat <<'HEAD'
# Licences

Mainstay is under Apache-2.0 OR MIT (LICENSE-APACHE, LICENSE-MIT). In its binaries for Linux are these packages, as their
authors declare their licences; the versions are those of Cargo.lock. Whoever passes a binary on passes their notices on,
too. `make licences` writes this list, `deny.toml` says which licences may be on it, and `make lint` looks at both.

| licence | packages |
|---|---|
HEAD
  for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
    cargo tree --locked --workspace --edges normal,build --target "$target" --prefix none --format '{p}|{l}'
  done | grep -v ' (/' | sed -e 's/ (\*)$//' -e 's/ v[0-9][^|]*|/|/' -e 's/|\(.*\)\/\(.*\)$/|\1 OR \2/' -e 's/ *OR */ OR /g' \
    | sort -u \
    | awk -F'|' '{ list[$2] = list[$2] (list[$2] ? ", " : "") $1 } END { for (one in list) print "| " one " | " list[one] " |" }' \
    | sort
}

if [ "${1:-}" = --check ]; then
  if ! diff -u "$LIST" <(list) >&2; then
    echo "$LIST is out of date: make licences, then look at what has changed" >&2
    exit 1
  fi
else
  list >"$LIST.new" && mv "$LIST.new" "$LIST"
fi
