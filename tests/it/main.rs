//! The balancer in process, between a raw client and a node that the test plays byte by byte.

mod admin;
mod admin_gate;
mod contract;
mod dashboard;
mod engine_io;
mod ends;
mod handshake;
mod limits;
mod lines;
mod numbers;
mod plain;
mod play;
mod pressure;
mod proxy_protocol;
mod quiet;
mod records;
mod scrape;
mod tls;
mod tls_nodes;
mod rebalance;
mod reload;
mod server;
mod threads;
mod panics;
mod papers;
mod wire;
