//! The idle timeout lint: warns of a `timeouts.idle` that cuts Socket.IO sessions between two pings.
//!
//! A node tells every client how often it pings, in the open packet of an Engine.IO session. That packet is in the
//! response to a polling handshake. For a client that begins with a WebSocket it is the first message of the tunnel, and
//! is seen only when it came together with the 101: the relay does not read messages. There is one warning for a pool
//! and a generation of its config.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::affinity::engine_io;
use crate::config;
use crate::ws::frame::{self, DecodedHeader, opcode};

/// Whether a pool was warned of.
#[derive(Debug, Default)]
pub(super) struct IdleTimeoutLint {
    has_warned: AtomicBool,
}

impl IdleTimeoutLint {
    /// No warning was logged yet, so that handshakes are still checked.
    pub(super) fn is_pending(&self) -> bool {
        !self.has_warned.load(Relaxed)
    }

    /// Checks the response to a polling handshake.
    pub(super) fn check_open_packet(&self, pool: &config::Pool, payload: &[u8]) {
        let Some(beat) = engine_io::parse_heartbeat(payload).filter(|_| self.is_pending()) else { return };
        let needed = beat.interval.saturating_add(beat.timeout);
        if pool.timeouts.idle < needed && !self.has_warned.swap(true, Relaxed) {
            tracing::warn!(
                pool = %pool.name,
                idle = ?pool.timeouts.idle,
                ping_interval = ?beat.interval,
                ping_timeout = ?beat.timeout,
                at_least = ?needed,
                "timeouts.idle may cut socket.io sessions between two pings, raise it or lower pingInterval on the nodes"
            );
        }
    }

    /// Checks what came from the node together with its 101, when `query` opens a session without polling.
    pub(super) fn check_first_frame(&self, pool: &config::Pool, query: Option<&str>, from_node: &[u8]) {
        if from_node.is_empty() || !self.is_pending() || !engine_io::is_websocket_handshake(query) {
            return;
        }
        let DecodedHeader::Header(header) = frame::decode_header(from_node) else { return };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let payload = from_node.get(header.size.into()..).and_then(|rest| rest.get(..len));
        let is_text = header.fin && header.opcode == opcode::TEXT && header.mask.is_none();
        if let Some(payload) = payload.filter(|_| is_text) {
            self.check_open_packet(pool, payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// What `act` logs.
    fn logged(act: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = log.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn pool(idle: &str) -> config::Pool {
        let text = format!(
            "pools: {{ chat: {{ nodes: [{{ id: a, address: \"a:1\" }}], timeouts: {{ idle: {idle} }} }} }}"
        );
        let read = |_: &std::path::Path| Err(io::ErrorKind::NotFound.into());
        config::resolve("f", text.as_bytes(), &|_| None, &read).unwrap().pools.remove(0)
    }

    const OPEN: &str =
        r#"0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1}"#;
    const WEBSOCKET: Option<&str> = Some("EIO=4&transport=websocket");

    #[test]
    fn an_idle_timeout_below_ping_interval_and_timeout_is_warned_of_once() {
        let (lint, pool) = (IdleTimeoutLint::default(), pool("44s"));
        let first = logged(|| lint.check_open_packet(&pool, OPEN.as_bytes()));
        for part in ["WARN", "pool=chat", "idle=44s", "at_least=45s", "raise it or lower pingInterval"] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert!(!lint.is_pending());
        assert_eq!(logged(|| lint.check_open_packet(&pool, OPEN.as_bytes())), "");
    }

    #[test]
    fn a_sufficient_idle_timeout_is_accepted_and_the_next_node_is_checked() {
        let (lint, pool) = (IdleTimeoutLint::default(), pool("45s"));
        assert_eq!(logged(|| lint.check_open_packet(&pool, OPEN.as_bytes())), "");
        assert!(lint.is_pending());
        let slower = OPEN.replace("25000", "25001");
        assert!(logged(|| lint.check_open_packet(&pool, slower.as_bytes())).contains("at_least=45.001s"));
    }

    #[test]
    fn an_open_packet_that_came_with_the_101_is_checked() {
        let framed = [&[0x81, u8::try_from(OPEN.len()).unwrap()], OPEN.as_bytes()].concat();
        let lint = IdleTimeoutLint::default();
        for (query, bytes) in [
            (None, &framed[..]),
            (Some("EIO=4&transport=websocket&sid=x"), &framed[..]),
            (WEBSOCKET, &framed[..framed.len() - 1]),
            (WEBSOCKET, &[0x81][..]),
            (WEBSOCKET, &[0x88, 0x00][..]),
            (WEBSOCKET, &[0x81, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..]),
            (WEBSOCKET, &[0xc1, 0x02, 1, 2][..]),
            (WEBSOCKET, &[][..]),
        ] {
            assert_eq!(
                logged(|| lint.check_first_frame(&pool("1s"), query, bytes)),
                "",
                "{query:?} {bytes:?}"
            );
        }
        let more = [&framed[..], &[0x81, 1, b'2']].concat();
        assert!(logged(|| lint.check_first_frame(&pool("1s"), WEBSOCKET, &more)).contains("pool=chat"));
    }
}
