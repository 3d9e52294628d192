//! A tunnel in its relay thread: two ends, two pipes, and how it comes to its one outcome.
//!
//! Its life: bytes pass until a peer closes, ends its stream or breaks, or until the balancer begins a close of its
//! own (nothing passes, no client answers, a fault, a closing). A deadline bounds the rest, whoever began the end
//! ([`ending`]).

mod report;
mod teardown;
mod codec;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::close_frame::{CloseFrame, DEFAULT_GRACE};
use super::endpoint::{Endpoint, ReadOutcome};
use super::keepalive::Keepalive;
use super::pipe::{HEADROOM, Pipe};
use super::tick::{TickContext, TunnelProgress};
use super::tls::TlsRole;
use super::{CloseReason, SessionInfo, Tunnel, millis};
use crate::metrics::{CloseSide, TrafficDirection};
use crate::ws::close;
use crate::ws::tracker::{MessageCounts, ScanOptions};

/// The client's index in a pair of ends or pipes; a pipe has the index of the end that it reads from.
pub const CLIENT: usize = 0;
/// The node's index.
pub const NODE: usize = 1;

/// Bytes that one tunnel may move in one direction in one turn.
const READ_QUANTUM: usize = 256 * 1024;

/// How long a peer that broke TLS has to read the alert. In milliseconds.
const ALERT_GRACE: u64 = 1_000;

/// Bytes that were read from client and node before their tunnel was adopted, and behind them what TLS had decrypted.
pub type EarlyBytes = [(Bytes, Bytes); 2];

/// See the module.
#[derive(Debug)]
pub struct ActiveTunnel {
    endpoints: [Endpoint; 2],
    pipes: [Pipe; 2],
    /// What the session is, for the outcome.
    pub info: SessionInfo,
    /// Payload bytes that a message may have.
    max_message_size: u64,
    /// Idle time allowed. In milliseconds.
    idle_timeout: u64,
    /// How long the other side has once one is done. In milliseconds.
    close_timeout: u32,
    /// When the tunnel was adopted, on the thread's clock.
    pub adopted_at: u64,
    /// When a byte of the peers' last passed, on the thread's clock.
    last_active: u64,
    /// When a text or binary message last began, on the thread's clock; 0 before the first.
    last_message: u64,
    /// When the tunnel is cut whatever the peers do; `u64::MAX` while nothing closes it.
    deadline: u64,
    /// Who began the end, with which code, and why.
    cause: Option<(CloseSide, u16, CloseReason)>,
    /// Whether the client is there.
    keepalive: Keepalive,
    /// The balancer has begun a close.
    is_close_sent: bool,
    /// In the thread's list of tunnels that want a turn.
    pub is_queued: bool,
    /// It has been frozen: another process may have its sockets open, too.
    pub was_frozen: bool,
}

impl ActiveTunnel {
    /// Takes a tunnel over at `now`, and gives the bytes that were read with it, which are to [pass](Self::pass_early).
    ///
    /// # Errors
    ///
    /// The record alone, where that broke off in a panic; the sockets are closed then.
    pub fn new(tunnel: Tunnel, now: u64) -> Result<(Self, EarlyBytes), Box<SessionInfo>> {
        let Tunnel { client, node, client_tls, node_tls, from_client, from_node, limits, info } = tunnel;
        let ends = catch_unwind(AssertUnwindSafe(|| {
            [
                Endpoint::adopt(client, client_tls, TlsRole::Server),
                Endpoint::adopt(node, node_tls, TlsRole::Client),
            ]
        }));
        let Ok([(client, behind_client), (node, behind_node)]) = ends else { return Err(Box::new(info)) };
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
        Ok((tunnel, [(from_client, behind_client.into()), (from_node, behind_node.into())]))
    }

    /// Passes what was read before the tunnel was here: the node's, then the client's.
    pub fn relay_early(&mut self, early: &EarlyBytes, tick: &mut TickContext<'_>) {
        for from in [NODE, CLIENT] {
            let (read, decrypted) = &early[from];
            self.relay_chunks(from, read, tick);
            self.relay_chunks(from, decrypted, tick);
        }
    }

    fn relay_chunks(&mut self, from: usize, bytes: &[u8], tick: &mut TickContext<'_>) {
        let room = tick.scratch.len() - HEADROOM;
        for piece in bytes.chunks(room) {
            tick.scratch[HEADROOM..][..piece.len()].copy_from_slice(piece);
            self.relay(from, piece.len(), tick);
        }
    }

    /// Both ends, for their sockets.
    pub fn endpoints(&self) -> &[Endpoint; 2] {
        &self.endpoints
    }

    /// One of the two ends.
    pub fn endpoint(&mut self, index: usize) -> &mut Endpoint {
        &mut self.endpoints[index]
    }

    /// Moves what can be moved, both ways.
    #[inline]
    pub fn pump_both(&mut self, tick: &mut TickContext<'_>) -> TunnelProgress {
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
            if self.endpoints[from].ended {
                self.endpoints[to].finish();
                return TunnelProgress::Idle;
            }
            if !self.endpoints[from].readable {
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

    /// Passes `len` bytes that stand in the scratch buffer behind the headroom.
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
            self.cause.get_or_insert((side(from), code, CloseReason::Closed));
        }
        if self.has_closed_both_ways() {
            self.deadline = self.deadline.min(now + DEFAULT_GRACE);
        }
    }

    /// A peer that takes no more bytes is still read to its end: its last words may be there.
    #[inline]
    fn check_write_failure(&mut self, to: usize) {
        if self.endpoints[to].broken {
            self.pipes[1 - to].shut();
            self.endpoints[to].set_ready(true, false, true);
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
        self.cause.get_or_insert((side(from), close::ABNORMAL, reason));
    }

    /// The peer broke TLS: it has been sent an alert. Both streams end, and it has a moment to read it.
    #[cold]
    fn fail_source_tls(&mut self, from: usize, now: u64) {
        if !self.endpoints[from].finishing {
            tracing::debug!(id = self.info.id, side = side(from).as_str(), "peer broke TLS");
        }
        self.cause.get_or_insert((side(from), close::ABNORMAL, CloseReason::Broken));
        self.deadline = self.deadline.min(now + ALERT_GRACE);
        self.pipes.iter_mut().for_each(Pipe::shut);
        self.endpoints[1 - from].suppress_close_notify();
        self.endpoints.iter_mut().for_each(Endpoint::finish);
    }

    /// A reset is passed on as a reset, behind the bytes that came before it.
    fn fail_source(&mut self, from: usize) -> TunnelProgress {
        self.cause.get_or_insert((side(from), close::ABNORMAL, CloseReason::Broken));
        self.endpoints[1 - from].flush();
        self.endpoints[1 - from].reset();
        TunnelProgress::Ended
    }
}

fn side(index: usize) -> CloseSide {
    if index == CLIENT { CloseSide::Client } else { CloseSide::Node }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_keeps_less_than_the_promised_512_bytes() {
        assert!(
            size_of::<ActiveTunnel>() + size_of::<Option<Box<ActiveTunnel>>>() <= 480,
            "{}",
            size_of::<ActiveTunnel>()
        );
    }
}
