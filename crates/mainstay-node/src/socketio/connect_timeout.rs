//! Connections that are in no namespace yet: nobody has said who they are, so they hold no permit of the node. They are
//! bounded in number, per client address too, and in time.
//!
//! One too many does not keep a newcomer out: the oldest makes way, of that address where the address has too many. A
//! client that is well says CONNECT a round trip after it came, so who floods the node pushes itself out. All get the
//! same time, so they stand in the order of their deadlines, and one task is enough, where a timer each would cost every
//! idle connection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How many connections may be in no namespace yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingLimits {
    /// On the node.
    pub most: usize,
    /// Of one client address; of one /64 network where that is IPv6.
    pub per_address: usize,
}

/// The connections of one server that are in no namespace yet.
pub(super) struct PendingConnections<C> {
    limits: PendingLimits,
    queue: Mutex<PendingQueue<Weak<C>>>,
    /// The queue is not empty any more.
    added: Notify,
}

/// Whoever waits, in the order of coming.
struct PendingQueue<T> {
    /// The number of the next one.
    next: u64,
    waiting: BTreeMap<u64, PendingEntry<T>>,
    /// The numbers of each address.
    addresses: HashMap<IpAddr, BTreeSet<u64>>,
}

struct PendingEntry<T> {
    deadline: Instant,
    address: IpAddr,
    session: T,
}

impl<C> PendingConnections<C> {
    pub(super) fn new(limits: PendingLimits) -> Self {
        Self { limits, queue: Mutex::new(PendingQueue::default()), added: Notify::new() }
    }

    /// A connection from `address` has so much time from now on. Gives its number, and those that have to make way.
    pub(super) fn add(&self, time: Duration, address: IpAddr, client: &Arc<C>) -> (u64, Vec<Arc<C>>) {
        let mut queue = self.queue.lock();
        let number = queue.push(Instant::now() + time, network(address), Arc::downgrade(client));
        let over = queue.evict_excess(self.limits, network(address));
        drop(queue);
        self.added.notify_one();
        (number, over.iter().filter_map(Weak::upgrade).collect())
    }

    /// A connection has come into a namespace, or has ended.
    pub(super) fn remove(&self, number: u64) {
        self.queue.lock().remove(number);
    }

    /// Closes every connection that is late, for ever.
    pub(super) async fn close_late(&self, close: impl Fn(&C)) {
        loop {
            let first = self.queue.lock().first();
            let Some((number, deadline)) = first else {
                self.added.notified().await;
                continue;
            };
            sleep_until(deadline).await;
            let late = self.queue.lock().remove(number);
            if let Some(client) = late.and_then(|client| client.upgrade()) {
                close(&client);
            }
        }
    }
}

impl<T> Default for PendingQueue<T> {
    fn default() -> Self {
        Self { next: 0, waiting: BTreeMap::new(), addresses: HashMap::new() }
    }
}

impl<T> PendingQueue<T> {
    fn push(&mut self, deadline: Instant, address: IpAddr, who: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, PendingEntry { deadline, address, session: who });
        self.addresses.entry(address).or_default().insert(number);
        number
    }

    /// Takes out those that are too many now that one of `address` has come.
    fn evict_excess(&mut self, limits: PendingLimits, address: IpAddr) -> Vec<T> {
        let mut over = Vec::new();
        let of_address = |queue: &Self| {
            queue.addresses.get(&address).filter(|all| all.len() > limits.per_address)?.first().copied()
        };
        while let Some(oldest) = of_address(self) {
            over.extend(self.remove(oldest));
        }
        while self.waiting.len() > limits.most
            && let Some((oldest, _)) = self.first()
        {
            over.extend(self.remove(oldest));
        }
        over
    }

    fn first(&self) -> Option<(u64, Instant)> {
        self.waiting.first_key_value().map(|(number, waiting)| (*number, waiting.deadline))
    }

    fn remove(&mut self, number: u64) -> Option<T> {
        let PendingEntry { address, session: who, .. } = self.waiting.remove(&number)?;
        if let Some(all) = self.addresses.get_mut(&address) {
            all.remove(&number);
            if all.is_empty() {
                self.addresses.remove(&address);
            }
        }
        Some(who)
    }
}

/// What counts as one address: a customer of IPv6 has a whole /64 network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(whole) => Ipv6Addr::from_bits(whole.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_an_address_that_has_too_many_makes_way_and_then_the_oldest_of_all() {
        let limits = PendingLimits { most: 4, per_address: 2 };
        let [one, two, three] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap());
        let mut queue = PendingQueue::default();
        let come = [
            ('a', one, ""),
            ('b', two, ""),
            ('c', one, ""),
            ('d', one, "a"),
            ('e', three, ""),
            ('f', three, "b"),
        ];
        for (who, address, over) in come {
            queue.push(Instant::now(), address, who);
            assert_eq!(String::from_iter(queue.evict_excess(limits, address)), over, "{who}");
        }
        assert_eq!(queue.addresses.len(), 2);
        for number in 0..6 {
            queue.remove(number);
        }
        assert!(queue.addresses.is_empty() && queue.first().is_none());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
