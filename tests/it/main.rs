//! The balancer in process, between a raw client and a node that the test plays byte by byte.

mod admin;
mod admin_gate;
mod ends;
mod handshake;
mod play;
mod plain;
mod pressure;
mod reload;
