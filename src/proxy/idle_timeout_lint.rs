//! The timeouts doctor: an idle timeout that cuts Socket.IO sessions between two pings is said before users say it.
//!
//! A node tells every client how often it pings, in the open packet of an Engine.IO session. That packet passes here
//! in the answer to a polling handshake. For a client that begins with a WebSocket it is the first message of the
//! tunnel, and is heard only when it came together with the 101: what comes later is the relay's, which reads
//! nothing. One warning is enough for a pool and a generation of its config.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::affinity::engine_io;
use crate::config;
use crate::ws::frame::{self, Decoded, opcode};

/// Whether a pool has been told.
#[derive(Debug, Default)]
pub struct IdleTimeoutLint {
    has_warned: AtomicBool,
}

impl IdleTimeoutLint {
    /// There is still something to be said, so that a handshake is worth a look.
    pub fn is_pending(&self) -> bool {
        !self.has_warned.load(Relaxed)
    }

    /// Looks at the answer to a polling handshake.
    pub fn check_open_packet(&self, pool: &config::Pool, payload: &[u8]) {
        let Some(beat) = engine_io::heartbeat(payload).filter(|_| self.is_pending()) else { return };
        let quiet = beat.interval.saturating_add(beat.timeout);
        if pool.timeouts.idle < quiet && !self.has_warned.swap(true, Relaxed) {
            tracing::warn!(
                pool = %pool.name,
                idle = ?pool.timeouts.idle,
                ping_interval = ?beat.interval,
                ping_timeout = ?beat.timeout,
                at_least = ?quiet,
                "timeouts.idle may cut socket.io sessions between two pings, raise it or lower pingInterval on the nodes"
            );
        }
    }

    /// Looks at what came from the node together with its 101, when `query` opens a session without polling.
    pub fn check_first_frame(&self, pool: &config::Pool, query: Option<&str>, from_node: &[u8]) {
        if from_node.is_empty() || !self.is_pending() || !engine_io::is_websocket_handshake(query) {
            return;
        }
        let Decoded::Header(header) = frame::decode(from_node) else { return };
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

    /// What is logged by `act`.
    fn said(act: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Page(Arc<Mutex<Vec<u8>>>);
        impl Write for Page {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let page = Page::default();
        let writer = page.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = page.0.lock().clone();
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
    fn an_idle_timeout_below_interval_and_timeout_is_said_once_with_the_remedy() {
        let (doctor, pool) = (IdleTimeoutLint::default(), pool("44s"));
        let first = said(|| doctor.check_open_packet(&pool, OPEN.as_bytes()));
        for part in ["WARN", "pool=chat", "idle=44s", "at_least=45s", "raise it or lower pingInterval"] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert!(!doctor.is_pending());
        assert_eq!(said(|| doctor.check_open_packet(&pool, OPEN.as_bytes())), "");
    }

    #[test]
    fn a_timeout_that_is_long_enough_is_fine_and_the_next_node_is_heard_too() {
        let (doctor, pool) = (IdleTimeoutLint::default(), pool("45s"));
        assert_eq!(said(|| doctor.check_open_packet(&pool, OPEN.as_bytes())), "");
        assert!(doctor.is_pending());
        let slower = OPEN.replace("25000", "25001");
        assert!(said(|| doctor.check_open_packet(&pool, slower.as_bytes())).contains("at_least=45.001s"));
    }

    #[test]
    fn an_open_packet_that_came_with_the_101_is_heard() {
        let framed = [&[0x81, u8::try_from(OPEN.len()).unwrap()], OPEN.as_bytes()].concat();
        let doctor = IdleTimeoutLint::default();
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
                said(|| doctor.check_first_frame(&pool("1s"), query, bytes)),
                "",
                "{query:?} {bytes:?}"
            );
        }
        let more = [&framed[..], &[0x81, 1, b'2']].concat();
        assert!(said(|| doctor.check_first_frame(&pool("1s"), WEBSOCKET, &more)).contains("pool=chat"));
    }
}
