//! TLS up to the end of the handshake phase: rustls, and the way out of it.

pub mod departed;
