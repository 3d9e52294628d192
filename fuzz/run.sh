#!/usr/bin/env bash
# run.sh [SECONDS [TARGET...]]: each fuzz target for that long; prints the executions of each and the total.
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`) and a nightly toolchain. New inputs are kept in fuzz/target/inputs, and
# what makes a target fail in fuzz/artifacts; `cargo +nightly fuzz cmin` makes a corpus of them. There is no sanitizer:
# the crate forbids unsafe code, and without one the same second holds several times the executions.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
options=(-s none --strip-dead-code true)
cargo +nightly fuzz build "${options[@]}"
total=0
failed=()
for target in ${*:-$(cargo +nightly fuzz list)}; do
  inputs=fuzz/target/inputs/$target
  log=fuzz/target/inputs/$target.log
  mkdir -p "$inputs"
  cargo +nightly fuzz run "${options[@]}" "$target" "$inputs" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=512 -print_final_stats=1 -timeout=20 >"$log" 2>&1 || failed+=("$target")
  executions=$(awk '/^stat::number_of_executed_units/ {print $2}' "$log")
  total=$((total + ${executions:-0}))
  printf '%-10s %12d executions\n' "$target" "${executions:-0}"
done
printf '%-10s %12d executions\n' total "$total"
for target in "${failed[@]}"; do
  echo "$target failed: see fuzz/target/inputs/$target.log and fuzz/artifacts/$target" >&2
done
[ ${#failed[@]} -eq 0 ]
