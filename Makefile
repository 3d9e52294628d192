# What a developer does here, and what CI does: the same targets.

.PHONY: help run build lint test setup autobahn bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## the demo: a balancer, three nodes and a page at 127.0.0.1:8080
	cargo run --release -- demo

build: ## the binary, for debugging
	cargo build

lint: ## formatting, clippy and docs, each without a warning
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

test: setup build ## every test; installs what they need when it is missing
	cargo test
	cd tests/js && npm test

setup: ## what the tests need from Debian and npm, when it is missing
	@tests/setup.sh

autobahn: setup build ## Autobahn through the balancer: the same verdict for each case as without it (from PyPI, python3 3.11 or 3.12)
	tests/autobahn/run.py

bench: ## the figures: pick, tracker, relay, and the whole beside nginx and HAProxy (on a quiet machine)
	cargo bench
