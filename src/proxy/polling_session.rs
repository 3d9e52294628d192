//! The Engine.IO sessions that clients open by polling, and how many of them each client may have.
//!
//! Between its requests a polling session holds no connection, but its node keeps it until its heartbeat fails; so
//! `limits.connections_per_client` counts it by a lease. A lease begins with the request that may open a session and
//! ends
//!
//! - when the answer is no session,
//! - when the session becomes a tunnel, whose connection counts for its client,
//! - when no request has named the session for as long as its node waits for one (`pingInterval` and `pingTimeout` of
//!   the open packet; 45 s, the defaults of engine.io, where that is not understood).
//!
//! A client may have as many leases as connections, and both at a time: with one connection it could not poll
//! otherwise. A session that its client closes by polling counts until its lease ends: the balancer does not read what
//! is in a session. The leases live beside the generations of the config; another process does not take them over.
//!
//! [`MAX_LEASES`] bounds the memory, to some 5 MB; beyond it nothing is counted. A limit for each client does not stop
//! an attacker who has that many addresses; `handshakes_per_second` still does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::affinity::engine_io::{self, Heartbeat};
use crate::http::reply::ProxyError;
use crate::net::connection_limit::client_prefix;

/// The most leases of all clients together.
const MAX_LEASES: usize = 100_000;
/// The lifetime of a session whose heartbeat is not known: 25 s and 20 s, the defaults of engine.io.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(45);
/// The longest lifetime, whatever the node says.
const MAX_LIFETIME: Duration = Duration::from_secs(600);
/// From one search for expired leases to the next.
const LEASE_SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The polling sessions of all clients.
#[derive(Debug)]
pub(super) struct PollingSessions {
    /// The zero of the leases' clock.
    started: Instant,
    table: Mutex<LeaseTable>,
}

impl PollingSessions {
    /// Nobody has a session.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), table: Mutex::default() })
    }

    /// A permit for one more session of this client, which may have `most`; `None` where it is not counted.
    ///
    /// # Errors
    ///
    /// [`ProxyError::ClientConnectionLimit`] when the client is at its limit.
    pub(super) fn open(
        self: &Arc<Self>,
        client: IpAddr,
        most: usize,
    ) -> Result<Option<PollingPermit>, ProxyError> {
        let client = client_prefix(client);
        let taken = self.table.lock().take(client, most, self.started.elapsed())?;
        Ok(taken.map(|id| PollingPermit { sessions: Arc::clone(self), client, id }))
    }

    /// A request has named a session, by its hash.
    pub(super) fn renew(&self, client: IpAddr, named: u64) {
        let now = self.started.elapsed();
        self.table.lock().change(
            client_prefix(client),
            |lease| lease.session == Some(named),
            |lease| {
                lease.expires_at = now + lease.lifetime;
            },
        );
    }

    /// The session is over.
    pub(super) fn end(&self, client: IpAddr, named: u64) {
        self.table.lock().remove(client_prefix(client), |lease| lease.session == Some(named));
    }
}

/// A session that is being opened. When it is dropped without a result the client has left, and the lease stays: the
/// node may have opened the session all the same.
#[derive(Debug)]
pub(super) struct PollingPermit {
    sessions: Arc<PollingSessions>,
    client: IpAddr,
    id: u64,
}

impl PollingPermit {
    /// No session was opened.
    pub(super) fn cancel(&self) {
        self.sessions.table.lock().remove(self.client, |lease| lease.id == self.id);
    }

    /// Reads the session from its node's answer.
    pub(super) fn confirm(&self, answer: &[u8]) {
        let session = engine_io::session_in_open_packet(answer);
        let lives = engine_io::parse_heartbeat(answer)
            .map(|beat: Heartbeat| beat.interval.saturating_add(beat.timeout));
        let (lives, now) =
            (lives.unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME), self.sessions.started.elapsed());
        self.sessions.table.lock().change(
            self.client,
            |lease| lease.id == self.id,
            |lease| {
                (lease.session, lease.lifetime, lease.expires_at) = (session, lives, now + lives);
            },
        );
    }
}

/// The leases. A client without one has no entry.
#[derive(Debug, Default)]
struct LeaseTable {
    clients: HashMap<IpAddr, Vec<PollingLease>>,
    /// Leases in all.
    count: usize,
    /// Leases so far.
    ids: u64,
    /// When expired leases were last removed.
    swept_at: Duration,
}

#[derive(Debug)]
struct PollingLease {
    id: u64,
    /// The hash of the sid, once it is known.
    session: Option<u64>,
    /// How long its node waits for the next request.
    lifetime: Duration,
    /// When it ends, on the clock of the table.
    expires_at: Duration,
}

impl LeaseTable {
    /// A lease for this client; `None` where it is not counted.
    fn take(&mut self, client: IpAddr, most: usize, now: Duration) -> Result<Option<u64>, ProxyError> {
        if now.saturating_sub(self.swept_at) >= LEASE_SWEEP_INTERVAL {
            self.swept_at = now;
            self.clients
                .keys()
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|client| self.end(client, now));
        }
        self.end(client, now);
        if self.clients.get(&client).is_some_and(|leases| leases.len() >= most) {
            return Err(ProxyError::ClientConnectionLimit);
        }
        if self.count >= MAX_LEASES {
            return Ok(None);
        }
        (self.count, self.ids) = (self.count + 1, self.ids + 1);
        let lease = PollingLease {
            id: self.ids,
            session: None,
            lifetime: DEFAULT_LIFETIME,
            expires_at: now + DEFAULT_LIFETIME,
        };
        self.clients.entry(client).or_default().push(lease);
        Ok(Some(self.ids))
    }

    /// Removes what has expired.
    fn end(&mut self, client: IpAddr, now: Duration) {
        self.remove(client, |lease| lease.expires_at <= now);
    }

    fn remove(&mut self, client: IpAddr, is_it: impl Fn(&PollingLease) -> bool) {
        let Some(leases) = self.clients.get_mut(&client) else { return };
        let before = leases.len();
        leases.retain(|lease| !is_it(lease));
        self.count -= before - leases.len();
        if leases.is_empty() {
            self.clients.remove(&client);
        }
    }

    fn change(
        &mut self,
        client: IpAddr,
        is_it: impl Fn(&PollingLease) -> bool,
        change: impl FnOnce(&mut PollingLease),
    ) {
        let leases = self.clients.get_mut(&client);
        if let Some(lease) = leases.and_then(|leases| leases.iter_mut().find(|lease| is_it(lease))) {
            change(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_client_has_as_many_leases_as_it_may_until_they_end() {
        let mut table = LeaseTable::default();
        assert!(table.take(client(1), 2, at(0)).unwrap().is_some());
        let second = table.take(client(1), 2, at(10)).unwrap().unwrap();
        assert_eq!(table.take(client(1), 2, at(44)), Err(ProxyError::ClientConnectionLimit));
        assert!(table.take(client(2), 2, at(44)).unwrap().is_some(), "another client has its own");
        assert!(table.take(client(1), 2, at(45)).unwrap().is_some(), "the first has ended");
        assert!(table.take(client(1), 2, at(46)).is_err());
        table.remove(client(1), |lease| lease.id == second);
        assert!(table.take(client(1), 2, at(46)).unwrap().is_some());
    }

    #[test]
    fn who_has_left_leaves_nothing_behind_and_there_is_an_end_to_the_memory() {
        let mut table = LeaseTable::default();
        for number in 0..MAX_LEASES as u32 {
            assert!(table.take(client(number), 1, at(1)).unwrap().is_some());
        }
        assert_eq!(table.take(client(u32::MAX), 1, at(2)), Ok(None), "let in, and not counted");
        assert!(table.take(client(7), 1, at(2)).is_err(), "who is counted stays so");
        assert!(table.take(client(u32::MAX), 1, at(60)).unwrap().is_some());
        assert_eq!((table.count, table.clients.len()), (1, 1));
    }

    #[test]
    fn a_session_counts_while_it_polls_and_no_more_once_it_is_a_tunnel() {
        let sessions = PollingSessions::new();
        let opening = sessions.open(client(1), 1).unwrap().unwrap();
        opening.confirm(br#"0{"sid":"abc","upgrades":[],"pingInterval":300000,"pingTimeout":20000}"#);
        drop(opening);
        let named = engine_io::session_in_query("EIO=4&transport=polling&sid=abc").unwrap();
        let until = || sessions.table.lock().clients[&client(1)][0].expires_at;
        let before = until();
        assert!(before > at(319), "{before:?}");
        sessions.renew(client(1), named);
        assert!(until() > before);
        sessions.renew(client(2), named);
        sessions.end(client(2), named);
        assert_eq!(sessions.open(client(1), 1).unwrap_err(), ProxyError::ClientConnectionLimit);
        sessions.end(client(1), named);
        assert!(sessions.open(client(1), 1).unwrap().is_some());
    }

    #[test]
    fn a_refused_session_counts_no_more() {
        let sessions = PollingSessions::new();
        sessions.open(client(1), 1).unwrap().unwrap().cancel();
        assert_eq!(sessions.table.lock().count, 0);
        let left = sessions.open(client(1), 1).unwrap();
        drop(left);
        assert!(sessions.open(client(1), 1).is_err(), "its client left, its node may have opened it");
    }
}
