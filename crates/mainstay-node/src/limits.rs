//! How many clients a node has room for, and how much one of them may say.
//!
//! A [`ConnectionPermit`] is one client's place and is given back when it is dropped. An [`ClientRateLimiter`] is one client's rate: it may
//! say a second's worth at once. What happens to a client without a permit, or over its rate, is the connection's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mainstay_core::rate_limit::TokenBucket;

/// What a client hears when the node is full: the reason of the Close (1008), and the message of a CONNECT_ERROR.
pub(crate) const AT_CAPACITY: &str = "Server at capacity";
/// What a client hears that says too much: the reason of the Close (1008).
pub(crate) const TOO_MANY_MESSAGES: &str = "Too many messages";

/// Counts the clients of a node, up to a maximum.
#[derive(Debug)]
pub struct ConnectionLimiter {
    /// How many there are.
    max: usize,
    /// How many are taken.
    in_use: AtomicUsize,
}

impl ConnectionLimiter {
    /// A limiter for up to `max` clients.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { max: most, in_use: AtomicUsize::new(0) })
    }

    /// A permit, when one is free.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let one_more = |taken| (taken < self.max).then_some(taken + 1);
        self.in_use.try_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(ConnectionPermit(Arc::clone(self)))
    }

    /// How many are taken.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }
}

/// One client of the node; given back when it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<ConnectionLimiter>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What every client may say in a second; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Messages.
    pub messages: u32,
    /// Bytes.
    pub bytes: u64,
}

impl RateLimits {
    /// The allowance of a client that begins now; `None` where there is no limit, so that it costs nothing.
    pub fn limiter(self) -> Option<Box<ClientRateLimiter>> {
        let is_limited = self.messages > 0 || self.bytes > 0;
        is_limited.then(|| {
            let (messages, bytes) = (TokenBucket::default(), TokenBucket::default());
            Box::new(ClientRateLimiter { rates: self, began: Instant::now(), messages, bytes })
        })
    }
}

/// What one client has left to say.
#[derive(Debug)]
pub struct ClientRateLimiter {
    rates: RateLimits,
    /// The buckets' zero.
    began: Instant,
    messages: TokenBucket,
    bytes: TokenBucket,
}

impl ClientRateLimiter {
    /// Whether one more message of so many bytes is within the rates.
    pub fn allows(&mut self, bytes: usize) -> bool {
        let now = self.began.elapsed();
        let message =
            self.rates.messages == 0 || self.messages.spend(1, self.rates.messages.into(), now).is_ok();
        message && (self.rates.bytes == 0 || self.bytes.spend(bytes as u64, self.rates.bytes, now).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_seats_as_said_and_one_that_is_left_is_free_again() {
        let limiter = ConnectionLimiter::new(2);
        let first = limiter.try_acquire().unwrap();
        let _second = limiter.try_acquire().unwrap();
        assert!(limiter.try_acquire().is_none());
        assert_eq!((limiter.in_use(), limiter.max()), (2, 2));
        drop(first);
        assert!(limiter.try_acquire().is_some());
        assert_eq!(limiter.in_use(), 1);
    }

    #[test]
    fn a_client_may_say_a_seconds_worth_at_once_and_no_more() {
        let mut allowance = RateLimits { messages: 5, bytes: 0 }.limiter().unwrap();
        assert_eq!((0..100).filter(|_| allowance.allows(1 << 20)).count(), 5);
        let mut allowance = RateLimits { messages: 0, bytes: 1000 }.limiter().unwrap();
        assert!((0..100).filter(|_| allowance.allows(100)).count() <= 11);
        assert!(RateLimits { messages: 0, bytes: 0 }.limiter().is_none());
    }
}
