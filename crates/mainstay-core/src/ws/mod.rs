//! WebSocket as a balancer needs it (RFC 6455): handshakes, frame headers, closes. Never a payload.
//!
//! The balancer does not own the bytes: masks, compression and text pass through untouched. All that is read is
//! where a frame ends, what kind it is and, of a Close, its code.

pub mod close;
pub mod frame;
pub mod handshake;
pub mod tracker;
