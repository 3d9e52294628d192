//! One connection's heartbeat, as arithmetic on milliseconds: when to ping, when to give up.
//!
//! Protocol 4: the server pings `interval` after the last pong, and the client has `timeout` to answer; one other
//! packet in the meantime is a sign of life and starts that time anew, once. Protocol 3: the client pings, and has
//! `interval` and `timeout` together between two pings.

use crate::engine_io::session::packet::Revision;

/// The times of a server, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeartbeatTimes {
    /// From a pong to the next ping.
    pub(crate) interval: u64,
    /// From a ping to giving up.
    pub(crate) timeout: u64,
    /// Silence of any kind that ends a connection.
    pub(crate) idle: u64,
}

/// The heartbeat's state. All times are milliseconds on the server's own clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat {
    /// When something is to be done next.
    due: u64,
    /// When anything was last heard.
    last_received: u64,
    /// A ping was sent and no pong has come.
    awaits_pong: bool,
    /// Another packet has already bought time for that pong.
    is_extended: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeartbeatAction {
    /// Nothing before that time.
    Wait(u64),
    /// Send a ping; look again at that time.
    Ping(u64),
    /// No answer came in time.
    TimedOut,
}

impl Heartbeat {
    /// The heartbeat of a connection that opened at `now`.
    pub(crate) fn new(revision: Revision, now: u64, times: &HeartbeatTimes) -> Self {
        let due = match revision {
            Revision::Four => now + times.interval,
            Revision::Three => now + times.interval + times.timeout,
        };
        Self { due, last_received: now, awaits_pong: false, is_extended: false }
    }

    /// Looks at the clock.
    pub(crate) fn check(&mut self, revision: Revision, now: u64, times: &HeartbeatTimes) -> HeartbeatAction {
        let silent_until = self.last_received.saturating_add(times.idle);
        if now >= silent_until {
            return HeartbeatAction::TimedOut;
        }
        if now < self.due {
            return HeartbeatAction::Wait(self.due.min(silent_until));
        }
        if self.awaits_pong || revision == Revision::Three {
            return HeartbeatAction::TimedOut;
        }
        (self.awaits_pong, self.is_extended) = (true, false);
        self.due = now + times.timeout;
        // Not behind the next ping that its pong may ask for: whoever waits is looked at early, never late.
        HeartbeatAction::Ping(self.due.min(now + times.interval).min(silent_until))
    }

    /// A packet that is no part of the heartbeat.
    pub(crate) fn packet_received(&mut self, now: u64, times: &HeartbeatTimes) {
        self.last_received = now;
        if self.awaits_pong && !self.is_extended {
            self.is_extended = true;
            self.due = now + times.timeout;
        }
    }

    /// A sign of life of the transport itself, which the heartbeat does not count.
    pub(crate) fn transport_alive(&mut self, now: u64) {
        self.last_received = now;
    }

    /// Protocol 4's pong.
    pub(crate) fn pong_received(&mut self, now: u64, times: &HeartbeatTimes) {
        (self.last_received, self.awaits_pong) = (now, false);
        self.due = now + times.interval;
    }

    /// Protocol 3's ping.
    pub(crate) fn ping_received(&mut self, now: u64, times: &HeartbeatTimes) {
        self.last_received = now;
        self.due = now + times.interval + times.timeout;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: HeartbeatTimes = HeartbeatTimes { interval: 300, timeout: 200, idle: 10_000 };

    #[test]
    fn a_pong_starts_the_interval_and_silence_ends_it() {
        let mut beat = Heartbeat::new(Revision::Four, 0, &TIMES);
        assert_eq!(beat.check(Revision::Four, 299, &TIMES), HeartbeatAction::Wait(300));
        assert_eq!(beat.check(Revision::Four, 300, &TIMES), HeartbeatAction::Ping(500));
        beat.pong_received(310, &TIMES);
        assert_eq!(beat.check(Revision::Four, 500, &TIMES), HeartbeatAction::Wait(610));
        assert_eq!(beat.check(Revision::Four, 610, &TIMES), HeartbeatAction::Ping(810));
        assert_eq!(beat.check(Revision::Four, 809, &TIMES), HeartbeatAction::Wait(810));
        assert_eq!(beat.check(Revision::Four, 810, &TIMES), HeartbeatAction::TimedOut);
    }

    #[test]
    fn an_interval_shorter_than_the_timeout_is_kept() {
        let times = HeartbeatTimes { interval: 100, timeout: 3000, idle: 10_000 };
        let mut beat = Heartbeat::new(Revision::Four, 0, &times);
        assert_eq!(beat.check(Revision::Four, 100, &times), HeartbeatAction::Ping(200));
        beat.pong_received(101, &times);
        assert_eq!(beat.check(Revision::Four, 200, &times), HeartbeatAction::Wait(201));
        assert_eq!(beat.check(Revision::Four, 201, &times), HeartbeatAction::Ping(301));
        assert_eq!(beat.check(Revision::Four, 301, &times), HeartbeatAction::Wait(3201));
    }

    #[test]
    fn another_packet_extends_the_wait_for_a_pong_once() {
        let mut beat = Heartbeat::new(Revision::Four, 0, &TIMES);
        beat.packet_received(100, &TIMES);
        assert_eq!(beat.check(Revision::Four, 300, &TIMES), HeartbeatAction::Ping(500));
        beat.packet_received(400, &TIMES);
        beat.packet_received(500, &TIMES);
        assert_eq!(beat.check(Revision::Four, 599, &TIMES), HeartbeatAction::Wait(600));
        assert_eq!(beat.check(Revision::Four, 600, &TIMES), HeartbeatAction::TimedOut);
    }

    #[test]
    fn in_protocol_3_the_client_pings_and_nothing_else_counts() {
        let mut beat = Heartbeat::new(Revision::Three, 0, &TIMES);
        beat.packet_received(400, &TIMES);
        assert_eq!(beat.check(Revision::Three, 499, &TIMES), HeartbeatAction::Wait(500));
        beat.ping_received(499, &TIMES);
        assert_eq!(beat.check(Revision::Three, 998, &TIMES), HeartbeatAction::Wait(999));
        assert_eq!(beat.check(Revision::Three, 999, &TIMES), HeartbeatAction::TimedOut);
    }

    #[test]
    fn with_a_slow_heartbeat_silence_alone_ends_a_connection() {
        let times = HeartbeatTimes { interval: 100_000, timeout: 1000, idle: 60_000 };
        let mut beat = Heartbeat::new(Revision::Four, 0, &times);
        assert_eq!(beat.check(Revision::Four, 59_999, &times), HeartbeatAction::Wait(60_000));
        beat.packet_received(30_000, &times);
        assert_eq!(beat.check(Revision::Four, 60_000, &times), HeartbeatAction::Wait(90_000));
        assert_eq!(beat.check(Revision::Four, 90_000, &times), HeartbeatAction::TimedOut);
    }
}
