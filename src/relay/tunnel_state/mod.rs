//! A parcel: one live tunnel as bytes, for the process that takes it over together with its two sockets.
//!
//! It says all that the tunnel is: who it is, what it is held to, where in its streams it stands, what was read and
//! not written yet, how far it has come with its end, and for TLS the keys and sequence numbers of both directions.
//! Times are told as distances (so long ago, in so long): clocks stay where they are.
//!
//! The form is versioned ([`VERSION`]) and made of [fields](field), so that a process of another build can refuse or
//! skip what it does not know. Reading is strict and bounded: any bytes give a tunnel or a [`Fault`].
//!
//! A parcel holds live keys. It is wiped when dropped and never printed, and it is one owner's at a time: whoever
//! holds a copy sends nothing until the other has let go.

pub mod field;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use field::TunnelStateError;

use crate::metrics::{Metrics, NodeMeter, NodePermit};
use crate::net::connection_limit::{ConnectionLimiter, ConnectionPermit};
use field::{FieldReader, FieldWriter};

/// The version of the form that is written and read here.
pub const VERSION: u16 = 1;

/// The most bytes of one parcel. A tunnel that holds more for a slow reader stays where it is until that has read.
pub const MAX_SIZE: usize = 4 << 20;

/// What a parcel begins with, before its version.
const MAGIC: [u8; 4] = *b"MSTN";

/// A parcel to be filled.
pub(super) fn start_state() -> FieldWriter {
    let mut writer = FieldWriter::default();
    writer.raw(&MAGIC);
    writer.raw(&VERSION.to_be_bytes());
    writer
}

/// The fields of a parcel.
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

/// What a tunnel that arrives is counted in.
#[derive(Clone, Copy)]
pub struct TunnelCounters<'a> {
    /// Where its seat is.
    pub metrics: &'a Metrics,
    /// Where its client's connection is counted, whatever the limits say: it was let in long ago.
    pub limiter: &'a Arc<ConnectionLimiter>,
}

/// What the tunnels of one batch share, looked up once.
pub(super) struct BatchCache<'a> {
    counters: TunnelCounters<'a>,
    meters: HashMap<(&'a str, &'a str), Arc<NodeMeter>>,
    routes: HashMap<&'a str, Arc<str>>,
}

impl<'a> BatchCache<'a> {
    pub fn new(counters: TunnelCounters<'a>) -> Self {
        Self { counters, meters: HashMap::new(), routes: HashMap::new() }
    }

    /// A seat on this node.
    pub fn node_connection(&mut self, pool: &'a str, node: &'a str) -> NodePermit {
        let meter = || self.counters.metrics.node(pool, node);
        self.meters.entry((pool, node)).or_insert_with(meter).acquire_permit()
    }

    /// The name of a route.
    pub fn route(&mut self, route: &'a str) -> Arc<str> {
        Arc::clone(self.routes.entry(route).or_insert_with(|| Arc::from(route)))
    }

    /// A place for a connection of this client, or of nobody's yet.
    pub fn permit(&self, client: Option<IpAddr>) -> Option<ConnectionPermit> {
        let mut permit = self.counters.limiter.acquire(u32::MAX)?;
        if let Some(client) = client {
            // Without a limit it is always true.
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
        assert_eq!(
            fault.to_string(),
            "the tunnel is written in version 2 of the form, and this program reads version 1"
        );
        for foreign in [&b""[..], b"MST", b"MSTN\0", b"HTTP/1.1 200 OK"] {
            assert_eq!(read_header(foreign).unwrap_err(), TunnelStateError::NotTunnelState);
        }
    }
}
