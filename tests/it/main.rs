//! The balancer in process, between a raw client and a node that the test plays byte by byte.

mod ends;
mod handshake;
mod papers;
mod play;
mod plain;
mod pressure;
mod tls;
