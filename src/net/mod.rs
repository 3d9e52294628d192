//! Sockets: what the balancer listens on, what it dials, and the streams that come of both.
//!
//! It knows addresses, not pools or routes: whoever calls says where to and for how long.

pub mod dial;
pub mod handover_socket;
pub(crate) mod inherited_sockets;
pub mod listener;
pub mod connection_limit;
pub mod proxy_protocol;
pub mod stream;
pub mod tls;
