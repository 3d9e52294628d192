# What a developer does here, and what CI does: the same targets.

.PHONY: help run build lint deny licences test setup soak autobahn fuzz network bench node load

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## the demo: a balancer, three nodes and a page at 127.0.0.1:8080
	cargo run --release -- demo

build: ## the binaries, for debugging
	cargo build --workspace

lint: deny ## formatting, clippy and docs, each without a warning; and what the packages are
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

deny: ## licences and sources of all packages (cargo-deny), and whether docs/licences.md is up to date
	tests/licences.sh --check
	tests/deny.sh

licences: ## docs/licences.md anew
	tests/licences.sh

test: setup build ## every test; installs what they need when it is missing
	cargo test --workspace
	cd tests/js && npm test

setup: ## what the tests need from Debian and npm, when it is missing
	@tests/setup.sh

soak: setup build ## the long runs: 9,000 tunnels x 20 upgrades, each a message a second both ways, and with TLS; 4,000 x 1,000 reloads; Autobahn over upgrades (needs 20,000 open files)
	MAINSTAY_TUNNELS=9000 MAINSTAY_UPGRADES=20 MAINSTAY_ROUND_MS=1000 cargo test --release --test process -- upgrade::tunnels_under --nocapture --test-threads=1
	MAINSTAY_TUNNELS=9000 MAINSTAY_UPGRADES=20 MAINSTAY_ROUND_MS=1000 cargo test --release --test process -- upgrade::tunnels_with --nocapture --test-threads=1
	MAINSTAY_TUNNELS=4000 MAINSTAY_RELOADS=1000 cargo test --release --test process -- reload::i9_tunnels_live_through_a_long_run --nocapture
	tests/autobahn/run.py --upgrade-every 10

autobahn: setup build ## Autobahn through the balancer: the same verdict for each case as without it (from PyPI, python3 3.11 or 3.12)
	tests/autobahn/run.py

network: build ## faults of a network (partition, loss, resets, a NAT that forgets) between namespaces; as root, with iproute2 and nftables
	cargo test --test network -- --nocapture

FUZZ_SECONDS ?= 60

fuzz: ## each fuzz target for FUZZ_SECONDS (60), and the executions of each (needs cargo-fuzz and a nightly toolchain)
	fuzz/run.sh $(FUZZ_SECONDS)

bench: ## the figures: pick, tracker, relay, and the whole beside nginx and HAProxy (on a quiet machine)
	cargo bench

node: ## the node's figures beside a Node.js socket.io server, one core each (on a quiet machine)
	cargo build --release --workspace
	node crates/mainstay-node/benches/bench.mjs

load: ## 5,000 clients over two Rust nodes and one Node.js server behind the balancer: broadcast latency
	cargo build --release --workspace
	node crates/mainstay-node/benches/load.mjs
