//! How a tunnel comes to its end: by a close of the balancer's, by a deadline, or because both sides are done.
//!
//! A tunnel is *half-ended* once one side has sent a Close, ended its stream or hung up. The other side then has the
//! pool's `timeouts.close`, whatever waits for it and however much it still sends: nobody keeps a place by ignoring
//! a Close. The coarse sweep sees it, so a message pays nothing for it.

use super::{CLIENT, End, Live, NODE, side};
use crate::metrics::Side;
use crate::relay::Why;
use crate::relay::farewell::Farewell;
use crate::relay::pulse::{Look, Way};
use crate::relay::turn::{Progress, Turn};
use crate::ws::{close, frame};

impl Live {
    /// Whether a sweep at `now` has something to look at.
    pub fn wants_sweep(&self, now: u64) -> bool {
        let is_idle = now.saturating_sub(self.active) >= self.idle;
        let is_ending = self.deadline != u64::MAX || self.is_half_ended();
        is_ending || is_idle || self.pulse.is_quiet(now) || self.is_worn()
    }

    /// One side is done, and neither the balancer nor a second Close has begun the end of the other.
    fn is_half_ended(&self) -> bool {
        !self.parting && !self.has_closed_both_ways() && (self.is_done(CLIENT) || self.is_done(NODE))
    }

    /// Nothing more is to come from this side.
    fn is_done(&self, index: usize) -> bool {
        let end = &self.ends[index];
        self.pipes[index].close_seen().is_some() || end.ended || end.broken || end.has_hung_up()
    }

    pub(super) fn has_closed_both_ways(&self) -> bool {
        self.pipes.iter().all(|pipe| pipe.close_seen().is_some())
    }

    fn is_worn(&self) -> bool {
        self.ends.iter().any(|end| end.worn)
    }

    /// Begins a close: a Close frame to both sides, each at its next boundary, then `grace` for their answers.
    pub fn farewell(&mut self, farewell: &Farewell<'_>, turn: &Turn<'_>) {
        self.cause.get_or_insert((Side::Balancer, farewell.code, farewell.why));
        self.parting = true;
        self.deadline = self.deadline.min(turn.now + farewell.grace);
        for from in [CLIENT, NODE] {
            let to = &mut self.ends[1 - from];
            let mask = (from == CLIENT).then_some(turn.mask);
            let frame = close::close_frame(farewell.code, farewell.reason, mask);
            self.pipes[from].inject(frame, true, |bytes| to.put(bytes));
        }
    }

    /// Past its deadline, idle for too long, or without a client?
    pub fn sweep(&mut self, turn: &Turn<'_>) -> Progress {
        if turn.now >= self.deadline {
            self.note_overdue();
            return self.over();
        }
        let is_free = self.deadline == u64::MAX;
        let is_half_ended = self.is_half_ended();
        if is_half_ended {
            self.deadline = self.deadline.min(turn.now.saturating_add(u64::from(self.close)));
        }
        if is_free && self.is_worn() {
            self.farewell(&Farewell::WORN, turn);
        } else if (is_free || is_half_ended) && turn.now.saturating_sub(self.active) >= self.idle {
            self.farewell(&Farewell::IDLE, turn);
        }
        if self.may_be_asked() {
            self.look_at_client(turn);
        }
        if self.is_over() { self.over() } else { Progress::Rests }
    }

    /// The deadline is here before the other side has answered a Close or an end of stream.
    fn note_overdue(&mut self) {
        let gone = if self.is_done(CLIENT) { CLIENT } else { NODE };
        let (_, _, why) = self.cause.get_or_insert((side(gone), close::ABNORMAL, Why::Ended));
        if matches!(why, Why::Closed | Why::Ended) && !self.has_closed_both_ways() {
            self.cause = self.cause.map(|(side, code, _)| (side, code, Why::CloseTimeout));
            // The kernel would go on offering it what it does not take, and keep that for minutes.
            self.ends.iter_mut().filter(|end| end.is_backed_up()).for_each(End::reset);
        }
    }

    /// The last thing before the sockets are closed: goodbye, where TLS still owes it.
    pub(super) fn over(&mut self) -> Progress {
        self.ends.iter_mut().for_each(|end| {
            end.part();
        });
        Progress::Over
    }

    /// A Ping would reach the client, and it would answer (RFC 6455, section 5.5.2: not behind a Close).
    fn may_be_asked(&self) -> bool {
        let client = &self.ends[CLIENT];
        let is_open = !(client.ended || client.finished || client.broken);
        is_open && self.deadline == u64::MAX && self.pipes.iter().all(|pipe| pipe.close_seen().is_none())
    }

    fn look_at_client(&mut self, turn: &Turn<'_>) {
        let pipe = &mut self.pipes[NODE];
        let client = &mut self.ends[CLIENT];
        let way = match (client.is_backed_up(), pipe.is_waiting()) {
            (true, _) => Way::Backlog(pipe.bytes()),
            (false, true) => Way::Frame,
            (false, false) => Way::Clear,
        };
        match self.pulse.look(turn.now, way) {
            Look::Fine => {}
            Look::Ask(payload) => {
                let ping = frame::control(frame::opcode::PING, &payload, None);
                pipe.inject(ping, false, |bytes| client.put(bytes));
            }
            Look::Silent => self.give_up_client(turn),
        }
    }

    /// The node is told and may answer; the client is told, too, in case it hears, but not waited for.
    fn give_up_client(&mut self, turn: &Turn<'_>) {
        self.cause.get_or_insert((Side::Client, close::ABNORMAL, Why::Silent));
        self.farewell(&Farewell::SILENT, turn);
        self.ends[CLIENT].broken = true;
        // What it has not taken is dropped at the next flush, so that the node's answer is read.
        self.ends[CLIENT].wake(false, true, false);
    }

    /// Both streams have ended and all went out; or the balancer closes, and both peers have answered.
    pub(super) fn is_over(&self) -> bool {
        if self.ends.iter().all(|end| (end.ended && end.finished) || end.broken) {
            return true;
        }
        if self.ends.iter().any(|end| end.broken && end.ended) {
            return true;
        }
        self.parting && [CLIENT, NODE].iter().all(|&index| self.has_answered(index))
    }

    fn has_answered(&self, index: usize) -> bool {
        let end = &self.ends[index];
        let heard = self.pipes[index].close_seen().is_some() || end.ended;
        (heard && !end.is_backed_up()) || end.broken
    }
}
