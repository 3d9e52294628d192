//! A tunnel in its relay thread: two endpoints, two pipes, and the way to its one end.
//!
//! Bytes pass until a peer closes, ends its stream or fails, or until the balancer begins a close of its own (idle, an
//! unresponsive client, a framing error, a paced close). A deadline bounds the rest, whoever began the end
//! (`teardown`).

mod codec;
mod report;
mod teardown;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::close_frame::{CLOSE_GRACE_MILLIS, CloseFrame};
use super::close_reason::CloseReason;
use super::endpoint::{Endpoint, ReadOutcome};
use super::keepalive::Keepalive;
use super::pipe::{HEADROOM, Pipe};
use super::session::{SessionInfo, Tunnel};
use super::tick::{TickContext, TunnelProgress, millis};
use super::tls::TlsRole;
use crate::metrics::{CloseSide, TrafficDirection};
use crate::ws::close;
use crate::ws::tracker::{MessageCounts, ScanOptions};

/// The client's index in a pair of endpoints or pipes; a pipe has the index of the endpoint that it reads from.
pub(super) const CLIENT: usize = 0;
/// The node's index.
pub(super) const NODE: usize = 1;

/// Bytes that one tunnel may move in one direction in one tick.
const READ_QUANTUM: usize = 256 * 1024;

/// How long a peer that broke TLS has to read the alert. In milliseconds.
const ALERT_GRACE: u64 = 1_000;

/// Bytes that came from a peer before its tunnel was adopted.
pub(super) struct EarlyBytes {
    /// Read from the socket, or decrypted by the front desk.
    received: Bytes,
    /// Decrypted from what TLS had received; they follow the others.
    decrypted: Bytes,
}

/// A tunnel that a relay thread carries.
#[derive(Debug)]
pub(super) struct ActiveTunnel {
    endpoints: [Endpoint; 2],
    pipes: [Pipe; 2],
    /// What the session is, for its end.
    pub info: SessionInfo,
    /// The most payload bytes of a message.
    max_message_size: u64,
    /// Time without a byte after which the tunnel is closed. In milliseconds.
    idle_timeout: u64,
    /// How long the other side has once one is done. In milliseconds.
    close_timeout: u32,
    /// When the tunnel was adopted, on the thread's clock.
    pub adopted_at: u64,
    /// When a byte of the peers last passed, on the thread's clock.
    last_active: u64,
    /// When a text or binary message last began, on the thread's clock; 0 before the first.
    last_message: u64,
    /// When the tunnel ends whatever the peers do; `u64::MAX` while nothing closes it.
    deadline: u64,
    /// What began the end, once something has.
    cause: Option<CloseCause>,
    /// Whether the client still answers.
    keepalive: Keepalive,
    /// The balancer has begun a close.
    is_close_sent: bool,
    /// It is in the thread's list of ready tunnels.
    pub is_queued: bool,
    /// It has been frozen: another process may have its sockets open, too.
    pub was_frozen: bool,
}

/// What began the end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CloseCause {
    side: CloseSide,
    code: u16,
    reason: CloseReason,
}

impl ActiveTunnel {
    /// Takes a tunnel over at `now`. Returns the bytes that were read with it too, for [`relay_early`](Self::relay_early).
    ///
    /// # Errors
    ///
    /// The session alone, when the takeover panicked; the sockets are closed then.
    pub(super) fn new(tunnel: Tunnel, now: u64) -> Result<(Self, [EarlyBytes; 2]), Box<SessionInfo>> {
        let Tunnel { client, node, client_tls, node_tls, from_client, from_node, limits, info } = tunnel;
        let endpoints = catch_unwind(AssertUnwindSafe(|| {
            [
                Endpoint::adopt(client, client_tls, TlsRole::Server),
                Endpoint::adopt(node, node_tls, TlsRole::Client),
            ]
        }));
        let Ok([(client, client_plain), (node, node_plain)]) = endpoints else { return Err(Box::new(info)) };
        let tunnel = Self {
            endpoints: [client, node],
            pipes: Default::default(),
            keepalive: Keepalive::new(limits.ping_interval, info.id, now),
            is_close_sent: false,
            info,
            max_message_size: limits.max_message_size,
            idle_timeout: millis(limits.idle_timeout),
            close_timeout: u32::try_from(millis(limits.close_timeout)).unwrap_or(u32::MAX),
            adopted_at: now,
            last_active: now,
            last_message: 0,
            deadline: u64::MAX,
            cause: None,
            is_queued: false,
            was_frozen: false,
        };
        let early = [
            EarlyBytes { received: from_client, decrypted: client_plain.into() },
            EarlyBytes { received: from_node, decrypted: node_plain.into() },
        ];
        Ok((tunnel, early))
    }

    /// Relays the bytes that were read before the tunnel was adopted: the node's, then the client's.
    pub(super) fn relay_early(&mut self, early: &[EarlyBytes; 2], tick: &mut TickContext<'_>) {
        for from in [NODE, CLIENT] {
            self.relay_chunks(from, &early[from].received, tick);
            self.relay_chunks(from, &early[from].decrypted, tick);
        }
    }

    fn relay_chunks(&mut self, from: usize, bytes: &[u8], tick: &mut TickContext<'_>) {
        let room = tick.scratch.len() - HEADROOM;
        for chunk in bytes.chunks(room) {
            tick.scratch[HEADROOM..][..chunk.len()].copy_from_slice(chunk);
            self.relay(from, chunk.len(), tick);
        }
    }

    /// Both endpoints.
    pub(super) fn endpoints(&self) -> &[Endpoint; 2] {
        &self.endpoints
    }

    /// One of the two endpoints.
    pub(super) fn endpoint(&mut self, index: usize) -> &mut Endpoint {
        &mut self.endpoints[index]
    }

    /// Moves what can be moved, both ways.
    #[inline]
    pub(super) fn pump_both(&mut self, tick: &mut TickContext<'_>) -> TunnelProgress {
        let from_client = self.pump(CLIENT, tick);
        let from_node = self.pump(NODE, tick);
        if from_client == TunnelProgress::Ended || from_node == TunnelProgress::Ended || self.is_finished() {
            return self.finish();
        }
        if from_client == TunnelProgress::Yielded { from_client } else { from_node }
    }

    #[inline]
    fn pump(&mut self, from: usize, tick: &mut TickContext<'_>) -> TunnelProgress {
        let to = 1 - from;
        let mut moved = 0;
        loop {
            self.endpoints[to].flush();
            self.check_write_failure(to);
            if self.endpoints[to].has_unsent() {
                return TunnelProgress::Idle;
            }
            if self.endpoints[from].has_ended() {
                self.endpoints[to].finish();
                return TunnelProgress::Idle;
            }
            if !self.endpoints[from].is_readable() {
                return TunnelProgress::Idle;
            }
            if moved >= READ_QUANTUM {
                return TunnelProgress::Yielded;
            }
            match self.endpoints[from].read(&mut tick.scratch[HEADROOM..]) {
                ReadOutcome::Bytes(len) => {
                    moved += len;
                    self.relay(from, len, tick);
                }
                ReadOutcome::WouldBlock => return TunnelProgress::Idle,
                ReadOutcome::Eof => self.end_source(from),
                ReadOutcome::Failed => return self.fail_source(from),
                ReadOutcome::Discarded(len) => {
                    moved += len;
                    self.fail_source_tls(from, tick.now);
                }
            }
        }
    }

    /// Relays the `len` bytes that follow the headroom in the scratch buffer.
    #[inline]
    fn relay(&mut self, from: usize, len: usize, tick: &mut TickContext<'_>) {
        let (pipe, to) = (&mut self.pipes[from], &mut self.endpoints[1 - from]);
        let held = pipe.held();
        let start = HEADROOM - held.len();
        tick.scratch[start..HEADROOM].copy_from_slice(held);
        let piece = &tick.scratch[start..HEADROOM + len];
        let mut tally = MessageCounts::default();
        let pings = if from == CLIENT { self.keepalive.token() } else { None };
        let heed = ScanOptions { limit: self.max_message_size, pings };
        let mut passed = false;
        let seen = pipe.feed(piece, heed, &mut tally, |bytes| {
            passed = true;
            to.write(bytes);
        });
        if passed {
            self.last_active = tick.now;
        }
        if from == CLIENT {
            self.keepalive.last_received = tick.now;
        }
        let shard = self.info.node_connection.shard(tick.thread);
        shard.add(
            if from == CLIENT { TrafficDirection::In } else { TrafficDirection::Out },
            len as u64,
            &tally,
        );
        if tally[0] + tally[1] > 0 {
            self.last_message = tick.now.max(1);
        }
        if tally[4] > 0 {
            self.record_close(from, tick.now);
        }
        if let Some(number) = seen.pong {
            self.keepalive.record_pong(number, tick.now);
        }
        if let Some(error) = seen.error {
            self.begin_close(&CloseFrame::for_error(error), tick);
        }
        self.check_write_failure(1 - from);
    }

    fn record_close(&mut self, from: usize, now: u64) {
        if let Some(code) = self.pipes[from].close_code() {
            self.set_cause(side(from), code, CloseReason::Closed);
        }
        if self.has_closed_both_ways() {
            self.deadline = self.deadline.min(now + CLOSE_GRACE_MILLIS);
        }
    }

    /// A peer that takes no more bytes is still read to its end: its Close may be there.
    #[inline]
    fn check_write_failure(&mut self, to: usize) {
        if self.endpoints[to].is_broken() {
            self.pipes[1 - to].shut();
            self.endpoints[to].set_hung_up();
        }
    }

    fn end_source(&mut self, from: usize) {
        let to = &mut self.endpoints[1 - from];
        self.pipes[from].finish(|bytes| to.write(bytes));
        let mut reason = CloseReason::Ended;
        if self.endpoints[from].was_truncated() {
            reason = CloseReason::Broken;
            self.endpoints[1 - from].suppress_close_notify();
        } else if self.endpoints[from].must_answer_close_notify() {
            self.pipes[1 - from].shut();
            self.endpoints[from].finish();
        }
        self.set_cause(side(from), close::ABNORMAL, reason);
    }

    /// The peer broke TLS and has been sent an alert. Both streams end, and the peer has a moment to read the alert.
    #[cold]
    fn fail_source_tls(&mut self, from: usize, now: u64) {
        if !self.endpoints[from].is_finishing() {
            tracing::debug!(id = self.info.id, side = side(from).as_str(), "peer broke TLS");
        }
        self.set_cause(side(from), close::ABNORMAL, CloseReason::Broken);
        self.deadline = self.deadline.min(now + ALERT_GRACE);
        self.pipes.iter_mut().for_each(Pipe::shut);
        self.endpoints[1 - from].suppress_close_notify();
        self.endpoints.iter_mut().for_each(Endpoint::finish);
    }

    /// Passes a reset on as a reset, after the bytes that came before it.
    fn fail_source(&mut self, from: usize) -> TunnelProgress {
        self.set_cause(side(from), close::ABNORMAL, CloseReason::Broken);
        self.endpoints[1 - from].flush();
        self.endpoints[1 - from].reset();
        TunnelProgress::Ended
    }

    /// Says what began the end, unless something else has.
    fn set_cause(&mut self, side: CloseSide, code: u16, reason: CloseReason) {
        self.cause.get_or_insert(CloseCause { side, code, reason });
    }
}

fn side(index: usize) -> CloseSide {
    if index == CLIENT { CloseSide::Client } else { CloseSide::Node }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_takes_less_than_the_promised_512_bytes() {
        // With a word of the allocator's, a multiple of 16: a word more would cost two.
        assert!(size_of::<ActiveTunnel>() <= 456, "{}", size_of::<ActiveTunnel>());
    }
}
