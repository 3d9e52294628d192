//! How a tunnel comes to its end: by a close of the balancer's, by a deadline, or because both sides are done.
//!
//! A tunnel is *half-ended* once one side has sent a Close, ended its stream or hung up. The other side then has the
//! pool's `timeouts.close`, whatever waits for it and however much it still sends: nobody keeps a place by ignoring
//! a Close. The coarse sweep sees it, so a message pays nothing for it.

use super::{ActiveTunnel, CLIENT, Endpoint, NODE, side};
use crate::metrics::CloseSide;
use crate::relay::CloseReason;
use crate::relay::close_frame::CloseFrame;
use crate::relay::keepalive::{KeepaliveCheck, PingPath};
use crate::relay::tick::{TickContext, TunnelProgress};
use crate::ws::{close, frame};

impl ActiveTunnel {
    /// Whether a sweep at `now` has something to look at.
    pub fn needs_sweep(&self, now: u64) -> bool {
        let is_idle = now.saturating_sub(self.last_active) >= self.idle_timeout;
        let is_ending = self.deadline != u64::MAX || self.is_half_ended();
        is_ending || is_idle || self.keepalive.is_due(now) || self.has_used_up_keys()
    }

    /// One side is done, and neither the balancer nor a second Close has begun the end of the other.
    fn is_half_ended(&self) -> bool {
        !self.is_close_sent
            && !self.has_closed_both_ways()
            && (self.is_side_done(CLIENT) || self.is_side_done(NODE))
    }

    /// Nothing more is to come from this side.
    fn is_side_done(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        self.pipes[index].close_code().is_some()
            || endpoint.ended
            || endpoint.broken
            || endpoint.has_hung_up()
    }

    pub(super) fn has_closed_both_ways(&self) -> bool {
        self.pipes.iter().all(|pipe| pipe.close_code().is_some())
    }

    fn has_used_up_keys(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.worn)
    }

    /// Begins a close: a Close frame to both sides, each at its next boundary, then `grace` for their answers.
    pub fn begin_close(&mut self, farewell: &CloseFrame<'_>, tick: &TickContext<'_>) {
        self.cause.get_or_insert((CloseSide::Balancer, farewell.code, farewell.cause));
        self.is_close_sent = true;
        self.deadline = self.deadline.min(tick.now + farewell.grace);
        for from in [CLIENT, NODE] {
            let to = &mut self.endpoints[1 - from];
            let mask = (from == CLIENT).then_some(tick.mask);
            let frame = close::encode_close(farewell.code, farewell.reason, mask);
            self.pipes[from].inject(frame, true, |bytes| to.write(bytes));
        }
    }

    /// Past its deadline, idle for too long, or without a client?
    pub fn sweep(&mut self, tick: &TickContext<'_>) -> TunnelProgress {
        if tick.now >= self.deadline {
            self.record_timeout();
            return self.finish();
        }
        let is_free = self.deadline == u64::MAX;
        let is_half_ended = self.is_half_ended();
        if is_half_ended {
            self.deadline = self.deadline.min(tick.now.saturating_add(u64::from(self.close_timeout)));
        }
        if is_free && self.has_used_up_keys() {
            self.begin_close(&CloseFrame::KEYS_USED_UP, tick);
        } else if (is_free || is_half_ended) && tick.now.saturating_sub(self.last_active) >= self.idle_timeout
        {
            self.begin_close(&CloseFrame::IDLE, tick);
        }
        if self.can_ping_client() {
            self.check_client(tick);
        }
        if self.is_finished() { self.finish() } else { TunnelProgress::Idle }
    }

    /// The deadline is here before the other side has answered a Close or an end of stream.
    fn record_timeout(&mut self) {
        let gone = if self.is_side_done(CLIENT) { CLIENT } else { NODE };
        let (_, _, reason) = self.cause.get_or_insert((side(gone), close::ABNORMAL, CloseReason::Ended));
        if matches!(reason, CloseReason::Closed | CloseReason::Ended) && !self.has_closed_both_ways() {
            self.cause = self.cause.map(|(side, code, _)| (side, code, CloseReason::CloseTimeout));
            // The kernel would go on offering it what it does not take, and keep that for minutes.
            self.endpoints.iter_mut().filter(|endpoint| endpoint.has_unsent()).for_each(Endpoint::reset);
        }
    }

    /// The last thing before the sockets are closed: goodbye, where TLS still owes it.
    pub(super) fn finish(&mut self) -> TunnelProgress {
        self.endpoints.iter_mut().for_each(|endpoint| {
            endpoint.send_close_notify();
        });
        TunnelProgress::Ended
    }

    /// A Ping would reach the client, and it would answer (RFC 6455, section 5.5.2: not behind a Close).
    fn can_ping_client(&self) -> bool {
        let client = &self.endpoints[CLIENT];
        let is_open = !(client.ended || client.finished || client.broken);
        is_open && self.deadline == u64::MAX && self.pipes.iter().all(|pipe| pipe.close_code().is_none())
    }

    fn check_client(&mut self, tick: &TickContext<'_>) {
        let pipe = &mut self.pipes[NODE];
        let client = &mut self.endpoints[CLIENT];
        let way = match (client.has_unsent(), pipe.has_queued_frame()) {
            (true, _) => PingPath::Backlog(pipe.bytes()),
            (false, true) => PingPath::MidFrame,
            (false, false) => PingPath::Clear,
        };
        match self.keepalive.check(tick.now, way) {
            KeepaliveCheck::Alive => {}
            KeepaliveCheck::SendPing(payload) => {
                let ping = frame::encode_control(frame::opcode::PING, &payload, None);
                pipe.inject(ping, false, |bytes| client.write(bytes));
            }
            KeepaliveCheck::Unresponsive => self.close_unresponsive(tick),
        }
    }

    /// The node is told and may answer; the client is told, too, in case it hears, but not waited for.
    fn close_unresponsive(&mut self, tick: &TickContext<'_>) {
        self.cause.get_or_insert((CloseSide::Client, close::ABNORMAL, CloseReason::Silent));
        self.begin_close(&CloseFrame::NO_PONG, tick);
        self.endpoints[CLIENT].broken = true;
        // What it has not taken is dropped at the next flush, so that the node's answer is read.
        self.endpoints[CLIENT].set_ready(false, true, false);
    }

    /// Both streams have ended and all went out; or the balancer closes, and both peers have answered.
    pub(super) fn is_finished(&self) -> bool {
        if self.endpoints.iter().all(|endpoint| (endpoint.ended && endpoint.finished) || endpoint.broken) {
            return true;
        }
        if self.endpoints.iter().any(|endpoint| endpoint.broken && endpoint.ended) {
            return true;
        }
        self.is_close_sent && [CLIENT, NODE].iter().all(|&index| self.has_answered(index))
    }

    fn has_answered(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        let heard = self.pipes[index].close_code().is_some() || endpoint.ended;
        (heard && !endpoint.has_unsent()) || endpoint.broken
    }
}
