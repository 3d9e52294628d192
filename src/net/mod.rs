//! Sockets: what the balancer listens on, what it dials, and the streams that come of both.
//!
//! It knows addresses, not pools or routes: whoever calls says where to and for how long.

pub mod dial;
pub mod handover;
pub mod inherit;
pub mod listen;
pub mod places;
pub mod proxy_protocol;
pub mod stream;
pub mod tls;
