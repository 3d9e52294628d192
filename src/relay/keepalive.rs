//! The keepalive of a client: when it gets a Ping, when it counts as gone, and its round-trip time.
//!
//! A client that has sent nothing for the interval gets a Ping; whatever it sends then is an answer. After another
//! interval without a byte it is unresponsive. The relay's sweep checks once a second: there is no timer.

use std::time::Duration;

use super::tick::millis;
use super::tunnel_state::TunnelStateError;
use super::tunnel_state::field::{FieldReader, FieldWriter};
use crate::affinity::hash::mix;
use crate::ws::tracker::PingToken;

/// As an interval: no Pings. As a round-trip time: none yet.
const NONE: u32 = u32::MAX;

/// The keepalive of one client. Its times are on the relay thread's clock, in milliseconds.
#[derive(Debug)]
pub(super) struct Keepalive {
    /// The payload of the last Ping, or what it is numbered from.
    token: PingToken,
    /// A client that is quiet for this long gets a Ping; after as long again it is unresponsive.
    interval: u32,
    /// From the last answered Ping to its Pong.
    round_trip: u32,
    /// When a byte of the client was last read.
    pub last_received: u64,
    /// Since when an answer is awaited: the last Ping, or the last time that the client took bytes before it. 0: never.
    waiting_since: u64,
    /// How many bytes had come from the node at that time.
    backlog_mark: u64,
}

/// The fields of a keepalive in a tunnel state. The times are relative to the time of writing.
mod tag {
    use crate::relay::tunnel_state::field::FieldTag;

    pub(super) const TOKEN: FieldTag = FieldTag(1, "token");
    pub(super) const INTERVAL: FieldTag = FieldTag(2, "interval");
    pub(super) const ROUND_TRIP: FieldTag = FieldTag(3, "round trip");
    pub(super) const LAST_RECEIVED: FieldTag = FieldTag(4, "last received");
    pub(super) const WAITING_SINCE: FieldTag = FieldTag(5, "waiting since");
    pub(super) const BACKLOG_MARK: FieldTag = FieldTag(6, "backlog mark");
}

/// What a Ping of the balancer's has before it on its way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PingPath {
    /// Nothing: the kernel takes it.
    Clear,
    /// The rest of a frame of the node's.
    MidFrame,
    /// Bytes that the client has not taken; that many have come from the node so far.
    Backlog(u64),
}

/// The result of a check of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepaliveCheck {
    /// It has sent something, or has time left.
    Alive,
    /// It is due a Ping with this payload.
    SendPing([u8; 8]),
    /// It has not answered in time.
    Unresponsive,
}

impl Keepalive {
    /// The keepalive of the session `id`, adopted at `now`; without an interval its client gets no Pings.
    pub(super) fn new(interval: Option<Duration>, id: u64, now: u64) -> Self {
        let interval = interval.map_or(NONE, |time| millis(time).clamp(1, u64::from(NONE - 1)) as u32);
        Self {
            token: PingToken(mix(id)),
            interval,
            round_trip: NONE,
            last_received: now,
            waiting_since: 0,
            backlog_mark: 0,
        }
    }

    /// The token that marks the Pongs in the client's stream.
    #[inline]
    pub(super) fn token(&self) -> Option<PingToken> {
        (self.interval != NONE).then_some(self.token)
    }

    /// Whether a [check](Self::check) at `now` may have a result.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.interval != NONE && now.saturating_sub(self.last_received) >= u64::from(self.interval)
    }

    /// Checks the client at `now`.
    pub(super) fn check(&mut self, now: u64, path: PingPath) -> KeepaliveCheck {
        if !self.is_due(now) {
            return KeepaliveCheck::Alive;
        }
        if self.last_received >= self.waiting_since {
            if let PingPath::Backlog(taken) = path {
                self.backlog_mark = taken;
            }
            return self.send_ping(now);
        }
        match path {
            PingPath::MidFrame => self.restart_wait(now),
            PingPath::Backlog(taken) if taken != self.backlog_mark => {
                self.backlog_mark = taken;
                self.restart_wait(now);
            }
            _ => {}
        }
        if now.saturating_sub(self.waiting_since) >= u64::from(self.interval) {
            KeepaliveCheck::Unresponsive
        } else {
            KeepaliveCheck::Alive
        }
    }

    fn send_ping(&mut self, now: u64) -> KeepaliveCheck {
        self.token = self.token.next();
        self.waiting_since = now;
        KeepaliveCheck::SendPing(self.token.payload())
    }

    /// Restarts the wait for an answer. The Ping's Pong gives no round-trip time then, so it gets another number.
    fn restart_wait(&mut self, now: u64) {
        self.token = self.token.next();
        self.waiting_since = now;
    }

    /// The client has answered the Ping with this number.
    pub(super) fn record_pong(&mut self, number: u8, now: u64) {
        if number == self.token.number() {
            let trip = now.saturating_sub(self.waiting_since).min(u64::from(NONE - 1));
            self.round_trip = trip as u32;
        }
    }

    /// Writes its state at `now`.
    pub(super) fn encode(&self, writer: &mut FieldWriter, now: u64) {
        writer.number(tag::TOKEN, self.token.0);
        writer.number(tag::INTERVAL, self.interval);
        writer.number(tag::ROUND_TRIP, self.round_trip);
        writer.number(tag::LAST_RECEIVED, now.saturating_sub(self.last_received));
        writer.optional(
            tag::WAITING_SINCE,
            (self.waiting_since != 0).then(|| now.saturating_sub(self.waiting_since)),
        );
        writer.number(tag::BACKLOG_MARK, self.backlog_mark);
    }

    /// Reads what [`encode`](Self::encode) wrote, at `now`.
    pub(super) fn decode(mut fields: FieldReader<'_>, now: u64) -> Result<Self, TunnelStateError> {
        let keepalive = Self {
            token: PingToken(fields.number(tag::TOKEN)?),
            interval: fields.number(tag::INTERVAL)?,
            round_trip: fields.number(tag::ROUND_TRIP)?,
            last_received: now.saturating_sub(fields.number(tag::LAST_RECEIVED)?),
            waiting_since: fields.optional(tag::WAITING_SINCE)?.map_or(0, |ago| now.saturating_sub(ago)),
            backlog_mark: fields.number(tag::BACKLOG_MARK)?,
        };
        fields.finish()?;
        Ok(keepalive)
    }

    /// Moves its times to a clock that is `by` ahead.
    pub(super) fn shift_clock(&mut self, by: u64) {
        self.last_received = self.last_received.saturating_add(by);
        if self.waiting_since != 0 {
            self.waiting_since = self.waiting_since.saturating_add(by);
        }
    }

    /// The round-trip time of the last answered Ping.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        (self.round_trip != NONE).then(|| Duration::from_millis(u64::from(self.round_trip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = 30_000;

    fn keepalive() -> Keepalive {
        Keepalive::new(Some(Duration::from_millis(EVERY)), 7, 0)
    }

    #[test]
    fn a_client_that_sends_gets_no_ping() {
        let mut keepalive = keepalive();
        for now in (0..600_000).step_by(1_000) {
            keepalive.last_received = now - now % (EVERY - 1_000);
            assert_eq!(keepalive.check(now, PingPath::Clear), KeepaliveCheck::Alive);
        }
    }

    #[test]
    fn a_quiet_client_gets_one_ping_and_is_unresponsive_after_another_interval() {
        let mut keepalive = keepalive();
        let looks: Vec<u64> = (0..=2 * EVERY).step_by(1_000).collect();
        let seen: Vec<_> =
            looks.into_iter().map(|now| (now, keepalive.check(now, PingPath::Clear))).collect();
        let told: Vec<_> = seen.into_iter().filter(|(_, look)| *look != KeepaliveCheck::Alive).collect();
        let asked = KeepaliveCheck::SendPing(PingToken(mix(7)).next().payload());
        assert_eq!(told, [(EVERY, asked), (2 * EVERY, KeepaliveCheck::Unresponsive)]);
    }

    #[test]
    fn any_byte_answers_and_only_the_pong_of_the_last_ping_is_a_round_trip() {
        let mut keepalive = keepalive();
        let KeepaliveCheck::SendPing(first) = keepalive.check(EVERY, PingPath::Clear) else {
            panic!("a Ping")
        };
        keepalive.last_received = EVERY + 10;
        assert_eq!(
            (keepalive.check(2 * EVERY, PingPath::Clear), keepalive.round_trip()),
            (KeepaliveCheck::Alive, None)
        );
        let KeepaliveCheck::SendPing(second) = keepalive.check(2 * EVERY + 10, PingPath::Clear) else {
            panic!("another Ping")
        };
        assert_ne!(first, second);
        keepalive.record_pong(first[7], 2 * EVERY + 20);
        assert_eq!(keepalive.round_trip(), None);
        keepalive.record_pong(second[7], 2 * EVERY + 52);
        assert_eq!(keepalive.round_trip(), Some(Duration::from_millis(42)));
    }

    #[test]
    fn a_pong_in_the_millisecond_of_its_ping_answers() {
        let mut keepalive = keepalive();
        assert_ne!(keepalive.check(EVERY, PingPath::Clear), KeepaliveCheck::Alive);
        keepalive.last_received = EVERY;
        assert!(matches!(keepalive.check(2 * EVERY, PingPath::Clear), KeepaliveCheck::SendPing(_)));
    }

    #[test]
    fn a_ping_that_has_not_gone_out_yet_is_not_unanswered() {
        let mut keepalive = keepalive();
        assert_ne!(keepalive.check(EVERY, PingPath::Clear), KeepaliveCheck::Alive);
        for now in (EVERY..10 * EVERY).step_by(1_000) {
            assert_eq!(keepalive.check(now, PingPath::MidFrame), KeepaliveCheck::Alive);
        }
        assert_eq!(keepalive.check(11 * EVERY, PingPath::Clear), KeepaliveCheck::Unresponsive);
    }

    #[test]
    fn a_client_with_a_backlog_is_alive_as_long_as_it_takes_some_of_it() {
        let mut keepalive = keepalive();
        assert_ne!(keepalive.check(EVERY, PingPath::Backlog(100)), KeepaliveCheck::Alive);
        for now in (EVERY + 1_000..10 * EVERY).step_by(1_000) {
            assert_eq!(keepalive.check(now, PingPath::Backlog(now / 20_000)), KeepaliveCheck::Alive);
        }
        assert_eq!(keepalive.check(10 * EVERY, PingPath::Backlog(0)), KeepaliveCheck::Alive);
        assert_eq!(keepalive.check(11 * EVERY, PingPath::Backlog(0)), KeepaliveCheck::Unresponsive);
    }

    #[test]
    fn without_an_interval_no_client_gets_a_ping() {
        let mut keepalive = Keepalive::new(None, 7, 0);
        assert_eq!(
            (keepalive.check(u64::MAX, PingPath::Clear), keepalive.token()),
            (KeepaliveCheck::Alive, None)
        );
    }

    #[test]
    fn an_interval_too_long_for_its_field_is_the_longest() {
        let mut keepalive = Keepalive::new(Some(Duration::MAX), 7, 0);
        assert_eq!(keepalive.check(u64::from(NONE) - 2, PingPath::Clear), KeepaliveCheck::Alive);
        assert!(matches!(keepalive.check(u64::from(NONE) - 1, PingPath::Clear), KeepaliveCheck::SendPing(_)));
    }
}
