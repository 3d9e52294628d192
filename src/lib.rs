//! Mainstay: a layer-7 load balancer for WebSocket fleets that treats every established connection as
//! something to keep.
//!
//! Two machines share the work. The **front desk** (tokio, hyper) accepts, reads the request, finds the route,
//! picks the node, dials it and validates its answer. The **relay** (plain threads, each with one epoll and one
//! slab) adopts a tunnel once its handshake is over; from then on a tunnel is two sockets and a small state.
//!
//! # The life of a connection
//!
//! 1. accept: a place among the connections ([`net::connection_limit`]), the PROXY header ([`net::proxy_protocol`]), a place among
//!    those of its client.
//! 2. TLS: certificate by host, client certificate, tickets, within `limits.head_time` ([`net::tls`]).
//! 3. the request head, whole and strictly framed, within `limits.head_time` ([`http::request_stream`]).
//! 4. route: host and path name a pool, and the page's origin is one of the route's ([`route`]).
//! 5. affinity: cookie, Socket.IO sid, header, query or client address gives a pin or a key ([`affinity`]).
//! 6. a turn among the handshakes ([`rate_limit`]), then select: the candidates in order of preference ([`pool::select`]).
//! 7. dial the candidates in turn, send the upgrade, validate the answer ([`proxy`]).
//! 8. answer the client; the affinity cookie is set here.
//! 9. adopt: both sockets, the TLS keys taken out of rustls (`net::tls::extract`) and the bytes already read go to the
//!    relay thread with the fewest tunnels ([`relay::Relay::adopt`]).
//! 10. relay until a Close, a paced close (drain, rebalance, shutdown), a limit or a timeout ([`relay`]).
//! 11. one [`relay::SessionEnd`], logged once and counted once.
//!
//! [`proxy::connection`] is these steps as code, from 1 to 9.
//!
//! # Order of the modules
//!
//! A module names only modules above it in this file; `tests/tidy.rs` checks that.
//!
//! # Invariants
//!
//! - I1 A module names only modules above it.
//! - I2 Pure modules have no clock, no I/O, no threads.
//! - I3 A session sees one generation of state, from request to adoption.
//! - I4 The same key and the same nodes give the same node, in every process, on every machine and after every
//!   restart.
//! - I5 The client hears yes only after the node said a valid yes; no byte that the client sent after its request
//!   head reaches a node before that, and none is lost after it.
//! - I6 Nothing is injected except between two frames.
//! - I7 Every session ends in exactly one `SessionEnd`, logged once and counted once.
//! - I8 A bad config changes nothing, and says everything that is wrong with it at once.
//! - I9 A reload closes no connection whose route and node are still there.
//! - I10 What a slow reader does not take is bounded: the balancer stops reading from the other side.
//! - I11 Every paced close of tunnels ends by its deadline.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

// pure: data and arithmetic; time and randomness come in as arguments
pub use mainstay_core::{rate_limit, ws};
pub mod affinity;
pub mod pool;
pub mod route;
pub mod config;

// mechanism: I/O without policy
pub use mainstay_core::{service, shutdown};
pub mod metrics;
pub mod log;
pub mod net;
pub mod http;
pub mod relay;

// planes and wiring
pub mod proxy;
pub mod control;
pub mod admin;
pub mod app;
#[cfg(feature = "demo")]
pub mod demo;
