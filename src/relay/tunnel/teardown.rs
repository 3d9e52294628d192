//! The end of a tunnel: by a close of the balancer's, by a deadline, or because both sides are done.
//!
//! A tunnel is *half-ended* once one side has sent a Close, ended its stream or hung up. The other side then has the
//! pool's `timeouts.close`, whatever waits for it and however much it still sends: nobody keeps a connection by ignoring
//! a Close. The sweep enforces it, so that it costs nothing per message.

use super::{ActiveTunnel, CLIENT, CloseCause, NODE, side};
use crate::metrics::CloseSide;
use crate::relay::close_frame::CloseFrame;
use crate::relay::close_reason::CloseReason;
use crate::relay::endpoint::Endpoint;
use crate::relay::keepalive::{KeepaliveCheck, PingPath};
use crate::relay::tick::{TickContext, TunnelProgress};
use crate::ws::close::{self, encode_close};
use crate::ws::frame;

impl ActiveTunnel {
    /// Whether a [sweep](Self::sweep) at `now` may have something to do.
    pub(crate) fn needs_sweep(&self, now: u64) -> bool {
        let is_idle = now.saturating_sub(self.last_active) >= self.idle_timeout;
        let is_ending = self.deadline != u64::MAX || self.is_half_ended();
        is_ending || is_idle || self.keepalive.is_due(now) || self.has_used_up_keys()
    }

    /// Whether one side is done, and neither the balancer nor a second Close has begun the end of the other.
    fn is_half_ended(&self) -> bool {
        !self.is_close_sent
            && !self.has_closed_both_ways()
            && (self.is_side_done(CLIENT) || self.is_side_done(NODE))
    }

    /// Whether nothing more will come from this side.
    fn is_side_done(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        self.pipes[index].close_code().is_some()
            || endpoint.has_ended()
            || endpoint.is_broken()
            || endpoint.has_hung_up()
    }

    pub(super) fn has_closed_both_ways(&self) -> bool {
        self.pipes.iter().all(|pipe| pipe.close_code().is_some())
    }

    fn has_used_up_keys(&self) -> bool {
        self.endpoints.iter().any(Endpoint::has_used_up_keys)
    }

    /// Begins a close: a Close frame to both sides, each at its next boundary, then `grace` for their answers.
    pub(crate) fn begin_close(&mut self, close: &CloseFrame<'_>, tick: &TickContext<'_>) {
        self.set_cause(CloseSide::Balancer, close.code, close.cause);
        self.is_close_sent = true;
        self.deadline = self.deadline.min(tick.now + close.grace);
        for from in [CLIENT, NODE] {
            let to = &mut self.endpoints[1 - from];
            let mask = (from == CLIENT).then_some(tick.mask);
            let frame = encode_close(close.code, close.reason, mask);
            self.pipes[from].inject(frame, true, |bytes| to.write(bytes));
        }
    }

    /// Ends the tunnel if it is past its deadline; begins a close if it is idle or its client does not answer.
    pub(crate) fn sweep(&mut self, tick: &TickContext<'_>) -> TunnelProgress {
        if tick.now >= self.deadline {
            self.record_timeout();
            return self.finish();
        }
        let has_deadline = self.is_closing();
        let is_half_ended = self.is_half_ended();
        if is_half_ended {
            self.deadline = self.deadline.min(tick.now.saturating_add(u64::from(self.close_timeout)));
        }
        if !has_deadline && self.has_used_up_keys() {
            self.begin_close(&CloseFrame::KEYS_USED_UP, tick);
        } else if (!has_deadline || is_half_ended)
            && tick.now.saturating_sub(self.last_active) >= self.idle_timeout
        {
            self.begin_close(&CloseFrame::IDLE, tick);
        }
        if self.can_ping_client() {
            self.check_client(tick);
        }
        if self.is_finished() { self.finish() } else { TunnelProgress::Idle }
    }

    /// The deadline has passed before the other side has answered a Close or an end of stream.
    fn record_timeout(&mut self) {
        let gone = if self.is_side_done(CLIENT) { CLIENT } else { NODE };
        let default = CloseCause { side: side(gone), code: close::ABNORMAL, reason: CloseReason::Ended };
        let cause = *self.cause.get_or_insert(default);
        let is_peers = matches!(cause.reason, CloseReason::Closed | CloseReason::Ended);
        if is_peers && !self.has_closed_both_ways() {
            self.cause = Some(CloseCause { reason: CloseReason::CloseTimeout, ..cause });
            // Otherwise the kernel keeps what the peer does not take, and offers it for minutes.
            self.endpoints.iter_mut().filter(|endpoint| endpoint.has_unsent()).for_each(Endpoint::reset);
        }
    }

    /// Sends the close_notify that TLS still owes, right before the sockets are closed.
    pub(super) fn finish(&mut self) -> TunnelProgress {
        self.endpoints.iter_mut().for_each(|endpoint| {
            endpoint.send_close_notify();
        });
        TunnelProgress::Ended
    }

    /// Whether a Ping would reach the client and be answered (RFC 6455, section 5.5.2: not after a Close).
    fn can_ping_client(&self) -> bool {
        let client = &self.endpoints[CLIENT];
        let is_open = !(client.has_ended() || client.is_finished() || client.is_broken());
        is_open && !self.is_closing() && self.pipes.iter().all(|pipe| pipe.close_code().is_none())
    }

    fn check_client(&mut self, tick: &TickContext<'_>) {
        let pipe = &mut self.pipes[NODE];
        let client = &mut self.endpoints[CLIENT];
        let path = match (client.has_unsent(), pipe.has_queued_frame()) {
            (true, _) => PingPath::Backlog(pipe.bytes()),
            (false, true) => PingPath::MidFrame,
            (false, false) => PingPath::Clear,
        };
        match self.keepalive.check(tick.now, path) {
            KeepaliveCheck::Alive => {}
            KeepaliveCheck::SendPing(payload) => {
                let ping = frame::encode_control(frame::opcode::PING, &payload, None);
                pipe.inject(ping, false, |bytes| client.write(bytes));
            }
            KeepaliveCheck::Unresponsive => self.close_unresponsive(tick),
        }
    }

    /// Closes a tunnel whose client does not answer. The node may answer the Close; the client gets one, too, but is not
    /// waited for.
    fn close_unresponsive(&mut self, tick: &TickContext<'_>) {
        self.set_cause(CloseSide::Client, close::ABNORMAL, CloseReason::Silent);
        self.begin_close(&CloseFrame::NO_PONG, tick);
        // What waits for the client is dropped at the next flush, so that the node's answer is read.
        self.endpoints[CLIENT].set_broken();
    }

    /// Whether both streams have ended and everything is sent, or the balancer closes and both peers have answered.
    pub(super) fn is_finished(&self) -> bool {
        let is_done = |end: &Endpoint| (end.has_ended() && end.is_finished()) || end.is_broken();
        if self.endpoints.iter().all(is_done) {
            return true;
        }
        if self.endpoints.iter().any(|end| end.is_broken() && end.has_ended()) {
            return true;
        }
        self.is_close_sent && [CLIENT, NODE].iter().all(|&index| self.has_answered(index))
    }

    fn has_answered(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        let has_closed = self.pipes[index].close_code().is_some() || endpoint.has_ended();
        (has_closed && !endpoint.has_unsent()) || endpoint.is_broken()
    }
}
