//! A tunnel in its relay thread: two ends, two pipes, and how it comes to its one outcome.
//!
//! Its life: bytes pass until a peer closes, ends its stream or breaks, or until the balancer begins a close of its
//! own (nothing passes, no client answers, a fault, a closing). A deadline bounds the rest, whoever began the end
//! ([`ending`]).

mod account;
mod ending;
mod packing;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::end::{End, Read};
use super::farewell::{Farewell, SETTLE};
use super::pipe::{HEADROOM, Pipe};
use super::pulse::Pulse;
use super::tls::Role;
use super::turn::{Progress, Turn};
use super::{Record, Tunnel, Why, millis};
use crate::metrics::{Direction, Side};
use crate::ws::close;
use crate::ws::tracker::{Heed, Tally};

/// The client's index in a pair of ends or pipes; a pipe has the index of the end that it reads from.
pub const CLIENT: usize = 0;
/// The node's index.
pub const NODE: usize = 1;

/// Bytes that one tunnel may move in one direction in one turn.
const QUANTUM: usize = 256 * 1024;

/// How long a peer that broke TLS has to read the alert. In milliseconds.
const LINGER: u64 = 1_000;

/// Bytes that were read from client and node before their tunnel was adopted, and behind them what TLS had decrypted.
pub type Early = [(Bytes, Bytes); 2];

/// See the module.
#[derive(Debug)]
pub struct Live {
    ends: [End; 2],
    pipes: [Pipe; 2],
    /// What the session is, for the outcome.
    pub record: Record,
    /// Payload bytes that a message may have.
    max_message: u64,
    /// Idle time allowed. In milliseconds.
    idle: u64,
    /// How long the other side has once one is done. In milliseconds.
    close: u32,
    /// When the tunnel was adopted, on the thread's clock.
    pub adopted: u64,
    /// When a byte of the peers' last passed, on the thread's clock.
    active: u64,
    /// When a text or binary message last began, on the thread's clock; 0 before the first.
    messaged: u64,
    /// When the tunnel is cut whatever the peers do; `u64::MAX` while nothing closes it.
    deadline: u64,
    /// Who began the end, with which code, and why.
    cause: Option<(Side, u16, Why)>,
    /// Whether the client is there.
    pulse: Pulse,
    /// The balancer has begun a close.
    parting: bool,
    /// In the thread's list of tunnels that want a turn.
    pub queued: bool,
    /// It has been frozen: another process may have its sockets open, too.
    pub was_lent: bool,
}

impl Live {
    /// Takes a tunnel over at `now`, and gives the bytes that were read with it, which are to [pass](Self::pass_early).
    ///
    /// # Errors
    ///
    /// The record alone, where that broke off in a panic; the sockets are closed then.
    pub fn new(tunnel: Tunnel, now: u64) -> Result<(Self, Early), Box<Record>> {
        let Tunnel { client, node, client_tls, node_tls, from_client, from_node, rules, record } = tunnel;
        let ends = catch_unwind(AssertUnwindSafe(|| {
            [End::with(client, client_tls, Role::Server), End::with(node, node_tls, Role::Client)]
        }));
        let Ok([(client, behind_client), (node, behind_node)]) = ends else { return Err(Box::new(record)) };
        let live = Self {
            ends: [client, node],
            pipes: Default::default(),
            pulse: Pulse::new(rules.ping, record.id, now),
            parting: false,
            record,
            max_message: rules.max_message,
            idle: millis(rules.idle),
            close: u32::try_from(millis(rules.close)).unwrap_or(u32::MAX),
            adopted: now,
            active: now,
            messaged: 0,
            deadline: u64::MAX,
            cause: None,
            queued: false,
            was_lent: false,
        };
        Ok((live, [(from_client, behind_client.into()), (from_node, behind_node.into())]))
    }

    /// Passes what was read before the tunnel was here: the node's, then the client's.
    pub fn pass_early(&mut self, early: &Early, turn: &mut Turn<'_>) {
        for from in [NODE, CLIENT] {
            let (read, decrypted) = &early[from];
            self.pass_all(from, read, turn);
            self.pass_all(from, decrypted, turn);
        }
    }

    fn pass_all(&mut self, from: usize, bytes: &[u8], turn: &mut Turn<'_>) {
        let room = turn.scratch.len() - HEADROOM;
        for piece in bytes.chunks(room) {
            turn.scratch[HEADROOM..][..piece.len()].copy_from_slice(piece);
            self.pass(from, piece.len(), turn);
        }
    }

    /// Both ends, for their sockets.
    pub fn ends(&self) -> &[End; 2] {
        &self.ends
    }

    /// One of the two ends.
    pub fn end(&mut self, index: usize) -> &mut End {
        &mut self.ends[index]
    }

    /// Moves what can be moved, both ways.
    #[inline]
    pub fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let from_client = self.pump(CLIENT, turn);
        let from_node = self.pump(NODE, turn);
        if from_client == Progress::Over || from_node == Progress::Over || self.is_over() {
            return self.over();
        }
        if from_client == Progress::WantsMore { from_client } else { from_node }
    }

    #[inline]
    fn pump(&mut self, from: usize, turn: &mut Turn<'_>) -> Progress {
        let to = 1 - from;
        let mut moved = 0;
        loop {
            self.ends[to].flush();
            self.note_break(to);
            if self.ends[to].is_backed_up() {
                return Progress::Rests;
            }
            if self.ends[from].ended {
                self.ends[to].finish();
                return Progress::Rests;
            }
            if !self.ends[from].readable {
                return Progress::Rests;
            }
            if moved >= QUANTUM {
                return Progress::WantsMore;
            }
            match self.ends[from].read(&mut turn.scratch[HEADROOM..]) {
                Read::Bytes(len) => {
                    moved += len;
                    self.pass(from, len, turn);
                }
                Read::Nothing => return Progress::Rests,
                Read::End => self.source_ended(from),
                Read::Broken => return self.source_broke(from),
                Read::Lost(len) => {
                    moved += len;
                    self.source_lost(from, turn.now);
                }
            }
        }
    }

    /// Passes `len` bytes that stand in the scratch buffer behind the headroom.
    #[inline]
    fn pass(&mut self, from: usize, len: usize, turn: &mut Turn<'_>) {
        let (pipe, to) = (&mut self.pipes[from], &mut self.ends[1 - from]);
        let held = pipe.held();
        let start = HEADROOM - held.len();
        turn.scratch[start..HEADROOM].copy_from_slice(held);
        let piece = &turn.scratch[start..HEADROOM + len];
        let mut tally = Tally::default();
        let pings = if from == CLIENT { self.pulse.token() } else { None };
        let heed = Heed { limit: self.max_message, pings };
        let mut passed = false;
        let seen = pipe.feed(piece, heed, &mut tally, |bytes| {
            passed = true;
            to.put(bytes);
        });
        if passed {
            self.active = turn.now;
        }
        if from == CLIENT {
            self.pulse.heard = turn.now;
        }
        let shard = self.record.seat.shard(turn.thread);
        shard.add(if from == CLIENT { Direction::In } else { Direction::Out }, len as u64, &tally);
        if tally[0] + tally[1] > 0 {
            self.messaged = turn.now.max(1);
        }
        if tally[4] > 0 {
            self.note_close(from, turn.now);
        }
        if let Some(number) = seen.pong {
            self.pulse.answered(number, turn.now);
        }
        if let Some(fault) = seen.fault {
            self.farewell(&Farewell::of(fault), turn);
        }
        self.note_break(1 - from);
    }

    fn note_close(&mut self, from: usize, now: u64) {
        if let Some(code) = self.pipes[from].close_seen() {
            self.cause.get_or_insert((side(from), code, Why::Closed));
        }
        if self.has_closed_both_ways() {
            self.deadline = self.deadline.min(now + SETTLE);
        }
    }

    /// A peer that takes no more bytes is still read to its end: its last words may be there.
    #[inline]
    fn note_break(&mut self, to: usize) {
        if self.ends[to].broken {
            self.pipes[1 - to].mute();
            self.ends[to].wake(true, false, true);
        }
    }

    fn source_ended(&mut self, from: usize) {
        let to = &mut self.ends[1 - from];
        self.pipes[from].end(|bytes| to.put(bytes));
        let mut why = Why::Ended;
        if self.ends[from].was_cut() {
            why = Why::Broken;
            self.ends[1 - from].fall_silent();
        } else if self.ends[from].must_part() {
            self.pipes[1 - from].mute();
            self.ends[from].finish();
        }
        self.cause.get_or_insert((side(from), close::ABNORMAL, why));
    }

    /// The peer broke TLS: it has been sent an alert. Both streams end, and it has a moment to read it.
    #[cold]
    fn source_lost(&mut self, from: usize, now: u64) {
        if !self.ends[from].finishing {
            tracing::debug!(id = self.record.id, side = side(from).as_str(), "peer broke TLS");
        }
        self.cause.get_or_insert((side(from), close::ABNORMAL, Why::Broken));
        self.deadline = self.deadline.min(now + LINGER);
        self.pipes.iter_mut().for_each(Pipe::mute);
        self.ends[1 - from].fall_silent();
        self.ends.iter_mut().for_each(End::finish);
    }

    /// A reset is passed on as a reset, behind the bytes that came before it.
    fn source_broke(&mut self, from: usize) -> Progress {
        self.cause.get_or_insert((side(from), close::ABNORMAL, Why::Broken));
        self.ends[1 - from].flush();
        self.ends[1 - from].reset();
        Progress::Over
    }
}

fn side(index: usize) -> Side {
    if index == CLIENT { Side::Client } else { Side::Node }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_keeps_less_than_the_promised_512_bytes() {
        assert!(size_of::<Live>() + size_of::<Option<Box<Live>>>() <= 480, "{}", size_of::<Live>());
    }
}
