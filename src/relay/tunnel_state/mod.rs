//! The tunnel state: one tunnel in serialised form, for the process that takes it over together with its two sockets.
//!
//! It is complete: the session, its limits, the position in both streams, bytes that are read and not written yet, how
//! far the tunnel has come with its end, and for TLS the keys and sequence numbers of both directions. Times are
//! relative (how long ago, in how long), because the clocks of two processes differ.
//!
//! The form has a version and is made of fields (`field`), so that a process of another build can refuse or skip
//! what it does not know. Decoding is strict and bounded: any bytes give a tunnel or a [`TunnelStateError`].
//!
//! A state holds live keys. It is wiped when dropped, never printed, and belongs to one process at a time: a process
//! that holds a copy sends nothing until the other has released the tunnel.

pub(super) mod field;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use field::TunnelStateError;

use crate::metrics::{Metrics, NodeMeter, NodePermit};
use crate::net::connection_limit::{ConnectionLimiter, ConnectionPermit};
use field::{FieldReader, FieldWriter};

/// The version of the form that this build writes and reads.
pub(crate) const VERSION: u16 = 1;

/// The most bytes of one state. A tunnel that holds more for a slow reader is kept until that has read.
pub(crate) const MAX_SIZE: usize = 4 << 20;

/// The first bytes of a state, before its version.
const MAGIC: [u8; 4] = *b"MSTN";

/// A state to be filled.
pub(super) fn start_state() -> FieldWriter {
    let mut writer = FieldWriter::default();
    writer.raw(&MAGIC);
    writer.raw(&VERSION.to_be_bytes());
    writer
}

/// The fields of a state.
pub(super) fn read_header(bytes: &[u8]) -> Result<FieldReader<'_>, TunnelStateError> {
    let (magic, bytes) = bytes.split_first_chunk().ok_or(TunnelStateError::NotTunnelState)?;
    if *magic != MAGIC {
        return Err(TunnelStateError::NotTunnelState);
    }
    let (version, bytes) = bytes.split_first_chunk().ok_or(TunnelStateError::NotTunnelState)?;
    match u16::from_be_bytes(*version) {
        VERSION => Ok(FieldReader::new(bytes, "the tunnel")),
        found => Err(TunnelStateError::Version { found, read: VERSION }),
    }
}

/// Where tunnels that come from another process are counted.
#[derive(Clone, Copy)]
pub struct TunnelCounters<'a> {
    /// Counts a tunnel on its node.
    pub metrics: &'a Metrics,
    /// Counts the client's connection, without a limit: it was admitted long ago.
    pub limiter: &'a Arc<ConnectionLimiter>,
}

/// Lookups that the tunnels of one batch share.
pub(super) struct BatchCache<'a> {
    counters: TunnelCounters<'a>,
    meters: HashMap<(&'a str, &'a str), Arc<NodeMeter>>,
    routes: HashMap<&'a str, Arc<str>>,
}

impl<'a> BatchCache<'a> {
    pub(super) fn new(counters: TunnelCounters<'a>) -> Self {
        Self { counters, meters: HashMap::new(), routes: HashMap::new() }
    }

    /// Counts a tunnel on this node.
    pub(super) fn node_connection(&mut self, pool: &'a str, node: &'a str) -> NodePermit {
        let meter = || self.counters.metrics.node(pool, node);
        self.meters.entry((pool, node)).or_insert_with(meter).acquire_permit()
    }

    /// The shared name of a route.
    pub(super) fn route(&mut self, route: &'a str) -> Arc<str> {
        Arc::clone(self.routes.entry(route).or_insert_with(|| Arc::from(route)))
    }

    /// Counts a connection of this client, or of a client that is not known.
    pub(super) fn permit(&self, client: Option<IpAddr>) -> Option<ConnectionPermit> {
        let mut permit = self.counters.limiter.acquire(u32::MAX)?;
        if let Some(client) = client {
            // Without a limit this always succeeds.
            let _ = permit.acquire_for_client(client, 0);
        }
        Some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_and_says_which() {
        let fault = read_header(b"MSTN\0\x02and more").unwrap_err();
        assert_eq!(fault, TunnelStateError::Version { found: 2, read: VERSION });
        assert_eq!(fault.to_string(), "tunnel state has version 2, and this build reads version 1");
        for foreign in [&b""[..], b"MST", b"MSTN\0", b"HTTP/1.1 200 OK"] {
            assert_eq!(read_header(foreign).unwrap_err(), TunnelStateError::NotTunnelState);
        }
    }
}
