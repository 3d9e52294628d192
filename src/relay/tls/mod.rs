//! TLS in the relay: a connection that has left rustls continues here, record by record, without I/O.
//!
//! Received bytes come in and plaintext goes out ([`TlsConnection::open`]), plaintext comes in and records go out
//! ([`TlsConnection::seal`]); alerts and KeyUpdates are appended to the same bytes out, in order. Everything that rustls
//! checks after the handshake is checked here; `alert` has the answers. Client and server differ only in who may send
//! a ticket and who may ask to renegotiate. An error of the peer is a value: an alert tells it, and from then on
//! nothing is opened and nothing sealed.
//!
//! A connection takes about 300 bytes, and holds no AEAD context (`aead_cache`).

mod aead_cache;
mod alert;
mod connection;
mod record;
mod state;
#[cfg(test)]
pub(super) mod tests;

pub use alert::RecordError;
pub use connection::{Leftover, TlsConnection};
pub use state::{ReceiveState, TlsRole};
