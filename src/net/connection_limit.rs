//! The limits on client connections: all together, and of each client.
//!
//! A [`ConnectionPermit`] is acquired at accept and released when it is dropped, wherever the connection is by then: at
//! the front desk or in the relay. The counts outlive every reload; the limits come in with each question. The table of
//! clients has an entry only for a client that has a connection, so it is bounded by the connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts the client connections, all together and of each client.
#[derive(Debug, Default)]
pub struct ConnectionLimiter(Mutex<ConnectionCounts>);

#[derive(Debug, Default)]
struct ConnectionCounts {
    total: u32,
    clients: HashMap<IpAddr, u32>,
}

/// What counts as one client: an IPv4 address, or a /64 of IPv6, which is what one subscriber has.
pub(crate) fn client_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        four @ IpAddr::V4(_) => four,
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl ConnectionLimiter {
    /// A permit for a connection, unless there are `most` already. Its client may be set later.
    pub fn acquire(self: &Arc<Self>, most: u32) -> Option<ConnectionPermit> {
        let mut counts = self.0.lock();
        if counts.total >= most {
            return None;
        }
        counts.total += 1;
        Some(ConnectionPermit { limiter: Arc::clone(self), client: None })
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> u32 {
        self.0.lock().total
    }
}

/// The permit of one client connection.
#[derive(Debug)]
pub struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// The client that it is counted for.
    client: Option<IpAddr>,
}

impl ConnectionPermit {
    /// The client, as it is counted: its [prefix](client_prefix).
    pub(crate) fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Counts the connection for its client. False, and counted for no client, when that one has `most` already; 0 is no
    /// limit.
    #[must_use]
    pub(crate) fn acquire_for_client(&mut self, client: IpAddr, most: u32) -> bool {
        let client = client_prefix(client);
        let mut counts = self.limiter.0.lock();
        release(&mut counts, self.client.take());
        let of_client = counts.clients.get(&client).copied().unwrap_or(0);
        if most != 0 && of_client >= most {
            return false;
        }
        counts.clients.insert(client, of_client + 1);
        self.client = Some(client);
        true
    }
}

fn release(counts: &mut ConnectionCounts, client: Option<IpAddr>) {
    let Some(client) = client else { return };
    match counts.clients.get_mut(&client) {
        Some(count) if *count > 1 => *count -= 1,
        _ => {
            counts.clients.remove(&client);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.limiter.0.lock();
        counts.total -= 1;
        release(&mut counts, self.client.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_permit_is_released_when_it_is_dropped() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let first = limiter.acquire(2).unwrap();
        let _second = limiter.acquire(2).unwrap();
        assert!(limiter.acquire(2).is_none());
        drop(first);
        assert_eq!(limiter.connections(), 1);
        assert!(limiter.acquire(2).is_some());
    }

    /// What a connection does with its permit. The second number of a claim is the client's limit.
    #[derive(Debug, Clone, Copy)]
    enum PermitStep {
        Take,
        Claim(usize, u8, u32),
        Leave(usize),
    }

    const ACTS: [PermitStep; 9] = [
        PermitStep::Take,
        PermitStep::Claim(0, 1, 1),
        PermitStep::Claim(0, 2, 2),
        PermitStep::Claim(1, 1, 1),
        PermitStep::Claim(1, 2, 0),
        PermitStep::Claim(2, 1, 2),
        PermitStep::Leave(0),
        PermitStep::Leave(1),
        PermitStep::Leave(2),
    ];

    /// Does one of them, and says whether it can be done now.
    fn act(limiter: &Arc<ConnectionLimiter>, held: &mut Vec<ConnectionPermit>, act: PermitStep) -> bool {
        let client = |number: u8| IpAddr::from([192, 0, 2, number]);
        match act {
            PermitStep::Take => {
                let counts = limiter.acquire(3);
                assert_eq!(counts.is_some(), held.len() < 3);
                held.extend(counts);
            }
            PermitStep::Claim(at, number, most) if at < held.len() => {
                let client = client(number);
                let others = held
                    .iter()
                    .enumerate()
                    .filter(|(other, permit)| *other != at && permit.client() == Some(client));
                let has_room = most == 0 || others.count() < most as usize;
                assert_eq!(held[at].acquire_for_client(client, most), has_room);
                assert_eq!(held[at].client(), has_room.then_some(client));
            }
            PermitStep::Leave(at) if at < held.len() => drop(held.remove(at)),
            _ => return false,
        }
        true
    }

    /// Each method does all it does under the one lock, so what connections do at the same time is one of these orders.
    #[test]
    fn in_every_order_of_connections_permits_are_counted_exactly() {
        let (mut order, mut played) = ([0; 8], 0);
        'orders: loop {
            let (limiter, mut held) = (Arc::new(ConnectionLimiter::default()), Vec::new());
            let stuck = order.iter().position(|&next| {
                let is_done = act(&limiter, &mut held, ACTS[next]);
                let counts = limiter.0.lock();
                let mut clients = HashMap::new();
                held.iter()
                    .filter_map(ConnectionPermit::client)
                    .for_each(|of| *clients.entry(of).or_insert(0) += 1);
                assert_eq!((counts.total as usize, &counts.clients), (held.len(), &clients));
                !is_done
            });
            played += usize::from(stuck.is_none());
            drop(held);
            assert_eq!((limiter.connections(), limiter.0.lock().clients.len()), (0, 0));
            // The next order; all that begin like one that is stuck are passed over.
            let mut at = stuck.unwrap_or(order.len() - 1);
            while order[at] + 1 == ACTS.len() {
                let Some(before) = at.checked_sub(1) else { break 'orders };
                at = before;
            }
            order[at] += 1;
            order[at + 1..].fill(0);
        }
        assert!(played > 20_000, "{played}");
    }

    #[test]
    fn a_lower_limit_lets_those_who_are_there_stay() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let _taken: Vec<ConnectionPermit> = (0..3).map(|_| limiter.acquire(3).unwrap()).collect();
        assert!(limiter.acquire(2).is_none());
        assert_eq!(limiter.connections(), 3);
    }

    #[test]
    fn each_client_has_its_own_limit_and_an_ipv6_client_is_its_64() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let claim = |client: &str| {
            let mut permit = limiter.acquire(100).unwrap();
            permit.acquire_for_client(ip(client), 2).then_some(permit)
        };
        let held: Vec<Option<ConnectionPermit>> =
            ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2"].map(claim).into();
        assert!(held.iter().all(Option::is_some));
        assert!(claim("192.0.2.1").is_none() && claim("2001:db8:0:0:ffff::").is_none());
        assert!(claim("192.0.2.2").is_some() && claim("2001:db8:0:1::").is_some());
        drop(held);
        assert!(claim("192.0.2.1").is_some());
        assert_eq!(limiter.connections(), 0);
        assert!(limiter.0.lock().clients.is_empty(), "a client without connections leaves nothing behind");
    }

    #[test]
    fn without_a_limit_clients_are_counted_so_that_a_later_one_finds_them() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let mut first = limiter.acquire(9).unwrap();
        assert!(first.acquire_for_client(ip("192.0.2.1"), 0));
        assert!(!limiter.acquire(9).unwrap().acquire_for_client(ip("192.0.2.1"), 1));
        assert!(first.acquire_for_client(ip("192.0.2.1"), 1), "it has its own permit already");
    }
}
