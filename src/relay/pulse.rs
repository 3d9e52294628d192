//! Whether a quiet client is still there: when it is asked, when it is given up, how long its answer took.
//!
//! A client that has sent nothing for a time gets a Ping; whatever it sends then answers it. Nothing for as long
//! again, and it is gone. The relay's sweep looks, once a second: there is no timer.

use std::time::Duration;

use super::millis;
use super::parcel::field::{Fault, Fields, Tag, Writer};
use crate::affinity::hash::mix;
use crate::ws::tracker::Token;

/// Of `every`: clients are not asked. Of `round_trip`: there is none yet.
const NONE: u32 = u32::MAX;

/// See the module. Times are on the relay thread's clock in milliseconds.
#[derive(Debug)]
pub struct Pulse {
    /// The payload of the last Ping, or what it is numbered from.
    token: Token,
    /// Quiet for this long, the client is asked; quiet for as long behind that, it is gone.
    every: u32,
    /// From the last answered Ping to its Pong.
    round_trip: u32,
    /// When a byte of the client's was last read.
    pub heard: u64,
    /// When the client was last asked, or has last taken something while the Ping was behind it.
    asked: u64,
    /// Bytes from the node, when that was.
    taken: u64,
}

/// The fields of a pulse in a parcel. The times are distances from the moment of writing.
mod tag {
    use super::Tag;

    pub const TOKEN: Tag = Tag(1, "token");
    pub const EVERY: Tag = Tag(2, "every");
    pub const ROUND_TRIP: Tag = Tag(3, "round trip");
    pub const HEARD: Tag = Tag(4, "heard");
    pub const ASKED: Tag = Tag(5, "asked");
    pub const TAKEN: Tag = Tag(6, "taken");
}

/// What stands between the balancer's Ping and the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The kernel has it.
    Clear,
    /// It waits for the end of a frame of the node's.
    Frame,
    /// It waits until the client takes what is before it; so many bytes have come from the node.
    Backlog(u64),
}

/// What a look at a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It was heard, or has time left.
    Fine,
    /// It is asked with this payload.
    Ask([u8; 8]),
    /// It is gone.
    Silent,
}

impl Pulse {
    /// Of the session `id`, adopted at `now`; without `every` its client is never asked.
    pub fn new(every: Option<Duration>, id: u64, now: u64) -> Self {
        let every = every.map_or(NONE, |every| millis(every).clamp(1, u64::from(NONE - 1)) as u32);
        Self { token: Token(mix(id)), every, round_trip: NONE, heard: now, asked: 0, taken: 0 }
    }

    /// What marks the answers in the client's stream.
    #[inline]
    pub fn token(&self) -> Option<Token> {
        (self.every != NONE).then_some(self.token)
    }

    /// Whether a [look](Self::look) at `now` has something to look at.
    pub fn is_quiet(&self, now: u64) -> bool {
        self.every != NONE && now.saturating_sub(self.heard) >= u64::from(self.every)
    }

    /// Looks at the client at `now`.
    pub fn look(&mut self, now: u64, way: Way) -> Look {
        if !self.is_quiet(now) {
            return Look::Fine;
        }
        if self.heard >= self.asked {
            if let Way::Backlog(taken) = way {
                self.taken = taken;
            }
            return self.ask(now);
        }
        match way {
            Way::Frame => self.wait_again(now),
            Way::Backlog(taken) if taken != self.taken => {
                self.taken = taken;
                self.wait_again(now);
            }
            _ => {}
        }
        if now.saturating_sub(self.asked) >= u64::from(self.every) { Look::Silent } else { Look::Fine }
    }

    fn ask(&mut self, now: u64) -> Look {
        self.token = self.token.next();
        self.asked = now;
        Look::Ask(self.token.payload())
    }

    /// The time for the answer begins anew; as it is not the answer's time any more, it is no round trip.
    fn wait_again(&mut self, now: u64) {
        self.token = self.token.next();
        self.asked = now;
    }

    /// The client has answered the Ping of this number.
    pub fn answered(&mut self, number: u8, now: u64) {
        if number == self.token.number() {
            let trip = now.saturating_sub(self.asked).min(u64::from(NONE - 1));
            self.round_trip = trip as u32;
        }
    }

    /// Writes down where it stands at `now`.
    pub fn pack(&self, writer: &mut Writer, now: u64) {
        writer.number(tag::TOKEN, self.token.0);
        writer.number(tag::EVERY, self.every);
        writer.number(tag::ROUND_TRIP, self.round_trip);
        writer.number(tag::HEARD, now.saturating_sub(self.heard));
        writer.maybe(tag::ASKED, (self.asked != 0).then(|| now.saturating_sub(self.asked)));
        writer.number(tag::TAKEN, self.taken);
    }

    /// Reads what [`pack`](Self::pack) wrote, at `now`.
    pub fn unpack(mut fields: Fields<'_>, now: u64) -> Result<Self, Fault> {
        let pulse = Self {
            token: Token(fields.number(tag::TOKEN)?),
            every: fields.number(tag::EVERY)?,
            round_trip: fields.number(tag::ROUND_TRIP)?,
            heard: now.saturating_sub(fields.number(tag::HEARD)?),
            asked: fields.maybe(tag::ASKED)?.map_or(0, |ago| now.saturating_sub(ago)),
            taken: fields.number(tag::TAKEN)?,
        };
        fields.end()?;
        Ok(pulse)
    }

    /// The clock that its times are on is `by` ahead of the one that they were read on.
    pub fn shift(&mut self, by: u64) {
        self.heard = self.heard.saturating_add(by);
        if self.asked != 0 {
            self.asked = self.asked.saturating_add(by);
        }
    }

    /// How long the last answer took.
    pub fn round_trip(&self) -> Option<Duration> {
        (self.round_trip != NONE).then(|| Duration::from_millis(u64::from(self.round_trip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = 30_000;

    fn pulse() -> Pulse {
        Pulse::new(Some(Duration::from_millis(EVERY)), 7, 0)
    }

    #[test]
    fn a_client_that_sends_is_never_asked() {
        let mut pulse = pulse();
        for now in (0..600_000).step_by(1_000) {
            pulse.heard = now - now % (EVERY - 1_000);
            assert_eq!(pulse.look(now, Way::Clear), Look::Fine);
        }
    }

    #[test]
    fn a_quiet_client_is_asked_once_and_given_up_when_it_is_quiet_for_as_long_again() {
        let mut pulse = pulse();
        let looks: Vec<u64> = (0..=2 * EVERY).step_by(1_000).collect();
        let seen: Vec<_> = looks.into_iter().map(|now| (now, pulse.look(now, Way::Clear))).collect();
        let told: Vec<_> = seen.into_iter().filter(|(_, look)| *look != Look::Fine).collect();
        let asked = Look::Ask(Token(mix(7)).next().payload());
        assert_eq!(told, [(EVERY, asked), (2 * EVERY, Look::Silent)]);
    }

    #[test]
    fn any_byte_answers_and_only_the_pong_of_the_last_ping_is_a_round_trip() {
        let mut pulse = pulse();
        let Look::Ask(first) = pulse.look(EVERY, Way::Clear) else { panic!("asked") };
        pulse.heard = EVERY + 10;
        assert_eq!((pulse.look(2 * EVERY, Way::Clear), pulse.round_trip()), (Look::Fine, None));
        let Look::Ask(second) = pulse.look(2 * EVERY + 10, Way::Clear) else { panic!("asked again") };
        assert_ne!(first, second);
        pulse.answered(first[7], 2 * EVERY + 20);
        assert_eq!(pulse.round_trip(), None);
        pulse.answered(second[7], 2 * EVERY + 52);
        assert_eq!(pulse.round_trip(), Some(Duration::from_millis(42)));
    }

    #[test]
    fn a_pong_in_the_millisecond_of_its_ping_answers() {
        let mut pulse = pulse();
        assert_ne!(pulse.look(EVERY, Way::Clear), Look::Fine);
        pulse.heard = EVERY;
        assert!(matches!(pulse.look(2 * EVERY, Way::Clear), Look::Ask(_)));
    }

    #[test]
    fn a_ping_that_has_not_gone_out_yet_is_not_unanswered() {
        let mut pulse = pulse();
        assert_ne!(pulse.look(EVERY, Way::Clear), Look::Fine);
        for now in (EVERY..10 * EVERY).step_by(1_000) {
            assert_eq!(pulse.look(now, Way::Frame), Look::Fine);
        }
        assert_eq!(pulse.look(11 * EVERY, Way::Clear), Look::Silent);
    }

    #[test]
    fn a_client_with_a_backlog_is_there_as_long_as_it_takes_some_of_it() {
        let mut pulse = pulse();
        assert_ne!(pulse.look(EVERY, Way::Backlog(100)), Look::Fine);
        for now in (EVERY + 1_000..10 * EVERY).step_by(1_000) {
            assert_eq!(pulse.look(now, Way::Backlog(now / 20_000)), Look::Fine);
        }
        assert_eq!(pulse.look(10 * EVERY, Way::Backlog(0)), Look::Fine);
        assert_eq!(pulse.look(11 * EVERY, Way::Backlog(0)), Look::Silent);
    }

    #[test]
    fn without_an_interval_nobody_is_asked() {
        let mut pulse = Pulse::new(None, 7, 0);
        assert_eq!((pulse.look(u64::MAX, Way::Clear), pulse.token()), (Look::Fine, None));
    }

    #[test]
    fn an_interval_too_long_for_its_field_is_the_longest() {
        let mut pulse = Pulse::new(Some(Duration::MAX), 7, 0);
        assert_eq!(pulse.look(u64::from(NONE) - 2, Way::Clear), Look::Fine);
        assert!(matches!(pulse.look(u64::from(NONE) - 1, Way::Clear), Look::Ask(_)));
    }
}
