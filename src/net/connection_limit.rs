//! How many client connections there are, all together and of each client, and the places that they take.
//!
//! A [`Place`] is taken at accept and given back when it is dropped, wherever the connection is by then: at the front
//! desk or a tunnel in the relay. The counts outlive every reload; the limits come in with each question. The table of
//! clients has an entry only for a client that has a connection, so it is bounded by the connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// See the module.
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
    /// A place for a connection, unless `most` are taken. Whose it is may be said later.
    pub fn acquire(self: &Arc<Self>, most: u32) -> Option<ConnectionPermit> {
        let mut taken = self.0.lock();
        if taken.total >= most {
            return None;
        }
        taken.total += 1;
        Some(ConnectionPermit { limiter: Arc::clone(self), client: None })
    }

    /// How many are taken.
    pub(crate) fn connections(&self) -> u32 {
        self.0.lock().total
    }
}

/// The place of one client connection.
#[derive(Debug)]
pub struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// Whose it is.
    client: Option<IpAddr>,
}

impl ConnectionPermit {
    /// Whose it is, as it is counted: the [prefix](client_prefix).
    pub(crate) fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Says whose it is. False, and nobody's still, when that client has `most` already; 0 is no limit.
    #[must_use]
    pub(crate) fn acquire_for_client(&mut self, client: IpAddr, most: u32) -> bool {
        let client = client_prefix(client);
        let mut taken = self.limiter.0.lock();
        release(&mut taken, self.client.take());
        let of_client = taken.clients.get(&client).copied().unwrap_or(0);
        if most != 0 && of_client >= most {
            return false;
        }
        taken.clients.insert(client, of_client + 1);
        self.client = Some(client);
        true
    }
}

fn release(taken: &mut ConnectionCounts, client: Option<IpAddr>) {
    let Some(client) = client else { return };
    match taken.clients.get_mut(&client) {
        Some(count) if *count > 1 => *count -= 1,
        _ => {
            taken.clients.remove(&client);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut taken = self.limiter.0.lock();
        taken.total -= 1;
        release(&mut taken, self.client.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_is_given_back_when_it_is_dropped() {
        let places = Arc::new(ConnectionLimiter::default());
        let first = places.acquire(2).unwrap();
        let _second = places.acquire(2).unwrap();
        assert!(places.acquire(2).is_none());
        drop(first);
        assert_eq!(places.connections(), 1);
        assert!(places.acquire(2).is_some());
    }

    /// What a connection does with its place. The second number of a claim is the client's limit.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Take,
        Claim(usize, u8, u32),
        Leave(usize),
    }

    const ACTS: [Act; 9] = [
        Act::Take,
        Act::Claim(0, 1, 1),
        Act::Claim(0, 2, 2),
        Act::Claim(1, 1, 1),
        Act::Claim(1, 2, 0),
        Act::Claim(2, 1, 2),
        Act::Leave(0),
        Act::Leave(1),
        Act::Leave(2),
    ];

    /// Does one of them, and says whether it can be done now.
    fn act(places: &Arc<ConnectionLimiter>, held: &mut Vec<ConnectionPermit>, act: Act) -> bool {
        let client = |number: u8| IpAddr::from([192, 0, 2, number]);
        match act {
            Act::Take => {
                let taken = places.acquire(3);
                assert_eq!(taken.is_some(), held.len() < 3);
                held.extend(taken);
            }
            Act::Claim(at, number, most) if at < held.len() => {
                let client = client(number);
                let others = held
                    .iter()
                    .enumerate()
                    .filter(|(other, place)| *other != at && place.client() == Some(client));
                let has_room = most == 0 || others.count() < most as usize;
                assert_eq!(held[at].acquire_for_client(client, most), has_room);
                assert_eq!(held[at].client(), has_room.then_some(client));
            }
            Act::Leave(at) if at < held.len() => drop(held.remove(at)),
            _ => return false,
        }
        true
    }

    /// Each method does all it does under the one lock, so what connections do at the same time is one of these orders.
    #[test]
    fn in_every_order_of_connections_places_are_counted_exactly() {
        let (mut order, mut played) = ([0; 8], 0);
        'orders: loop {
            let (places, mut held) = (Arc::new(ConnectionLimiter::default()), Vec::new());
            let stuck = order.iter().position(|&next| {
                let is_done = act(&places, &mut held, ACTS[next]);
                let taken = places.0.lock();
                let mut clients = HashMap::new();
                held.iter()
                    .filter_map(ConnectionPermit::client)
                    .for_each(|of| *clients.entry(of).or_insert(0) += 1);
                assert_eq!((taken.total as usize, &taken.clients), (held.len(), &clients));
                !is_done
            });
            played += usize::from(stuck.is_none());
            drop(held);
            assert_eq!((places.connections(), places.0.lock().clients.len()), (0, 0));
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
        let places = Arc::new(ConnectionLimiter::default());
        let _taken: Vec<ConnectionPermit> = (0..3).map(|_| places.acquire(3).unwrap()).collect();
        assert!(places.acquire(2).is_none());
        assert_eq!(places.connections(), 3);
    }

    #[test]
    fn each_client_has_its_own_limit_and_an_ipv6_client_is_its_64() {
        let places = Arc::new(ConnectionLimiter::default());
        let claim = |client: &str| {
            let mut place = places.acquire(100).unwrap();
            place.acquire_for_client(ip(client), 2).then_some(place)
        };
        let held: Vec<Option<ConnectionPermit>> =
            ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2"].map(claim).into();
        assert!(held.iter().all(Option::is_some));
        assert!(claim("192.0.2.1").is_none() && claim("2001:db8:0:0:ffff::").is_none());
        assert!(claim("192.0.2.2").is_some() && claim("2001:db8:0:1::").is_some());
        drop(held);
        assert!(claim("192.0.2.1").is_some());
        assert_eq!(places.connections(), 0);
        assert!(places.0.lock().clients.is_empty(), "a client without connections leaves nothing behind");
    }

    #[test]
    fn without_a_limit_clients_are_counted_so_that_a_later_one_finds_them() {
        let places = Arc::new(ConnectionLimiter::default());
        let mut first = places.acquire(9).unwrap();
        assert!(first.acquire_for_client(ip("192.0.2.1"), 0));
        assert!(!places.acquire(9).unwrap().acquire_for_client(ip("192.0.2.1"), 1));
        assert!(first.acquire_for_client(ip("192.0.2.1"), 1), "it has its own place already");
    }
}
