//! The two traffic secrets of one connection, caught while rustls makes them.
//!
//! rustls tells them once, at the handshake, and never again after a KeyUpdate. Only this connection hears them, only
//! in memory; nothing prints them, and they are wiped when dropped.

use std::fmt;

use parking_lot::Mutex;
use rustls::KeyLog;
use zeroize::Zeroizing;

use super::key_schedule::MAX_SECRET_LEN;

/// A first traffic secret, at the front of its bytes; they stay where they are when it is moved.
pub(crate) type TrafficSecret = Box<Zeroizing<[u8; MAX_SECRET_LEN]>>;

/// The [`KeyLog`] of one connection: keeps its first traffic secrets.
#[derive(Default)]
pub(crate) struct TrafficSecretLog {
    /// What the client sends with.
    client: Mutex<Secret0>,
    /// What the server sends with.
    server: Mutex<Secret0>,
}

type Secret0 = Option<TrafficSecret>;

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

impl TrafficSecretLog {
    /// The client's and the server's first secret, once; `None` in TLS 1.2 and before the handshake is done.
    pub(crate) fn take(&self) -> Option<(TrafficSecret, TrafficSecret)> {
        Some((self.client.lock().take()?, self.server.lock().take()?))
    }
}

impl KeyLog for TrafficSecretLog {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let slot = match label {
            CLIENT => &self.client,
            SERVER => &self.server,
            _ => return,
        };
        // No hash of TLS 1.3 is longer.
        if secret.len() <= MAX_SECRET_LEN {
            let mut kept = Box::new(Zeroizing::new([0; MAX_SECRET_LEN]));
            kept[..secret.len()].copy_from_slice(secret);
            *slot.lock() = Some(kept);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}

impl fmt::Debug for TrafficSecretLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_traffic_secrets_are_kept_once_and_no_other_and_never_printed() {
        let secrets = TrafficSecretLog::default();
        assert!(!secrets.will_log("EXPORTER_SECRET") && secrets.will_log(CLIENT) && secrets.will_log(SERVER));
        secrets.log("EXPORTER_SECRET", b"random", &[9; 32]);
        secrets.log(CLIENT, b"random", &[0xab; 32]);
        assert!(secrets.take().is_none());
        secrets.log(CLIENT, b"random", &[0xab; 32]);
        secrets.log(SERVER, b"random", &[2; 48]);
        assert_eq!(format!("{secrets:?}"), "Secrets(hidden)");
        let (client, server) = secrets.take().unwrap();
        assert_eq!((client[31], client[32], server[47]), (0xab, 0, 2));
        assert!(secrets.take().is_none());
    }
}
