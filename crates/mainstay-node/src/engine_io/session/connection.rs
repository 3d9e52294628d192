//! One client's connection, as the layer above sees it: who it is, sending, closing.
//!
//! Rules: sending never blocks and never calls back; what a client does not read is bounded, and with more the client
//! is cut and counted. The layer above is told of the end exactly once, never from within one of its own calls to
//! the connection, and no message begins after that; one that another thread has already begun may still be running.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};
use tracing::debug;

use crate::engine_io::session::context::Shared;
use crate::engine_io::session::ending::{CloseKind, Ending, Reason};
use crate::engine_io::session::frame::{Frame, Kind};
use crate::engine_io::session::handler::Inbox;
use crate::engine_io::session::handshake::Handshake;
use crate::engine_io::session::heartbeat::{Beat, Turn};
use crate::engine_io::session::packet::Packet;
use crate::engine_io::session::packet::{Message, Revision};
use crate::engine_io::session::sid::Sid;
use crate::engine_io::session::state::{Batch, Phase, Queue, State, Transport};
use crate::engine_io::transport::websocket::reader::More;

/// How long a WebSocket may take to write what waits before it is closed.
const CLOSE_TIME: u64 = 5_000;

/// How long a polling session that was closed waits for the GET that it can be told by; Node's `closeTimeout`.
const POLLING_CLOSE_TIME: u64 = 30_000;

/// A session with one client, whatever carries it.
pub struct Connection {
    /// Its name.
    sid: Sid,
    /// The protocol its client speaks.
    revision: Revision,
    /// What its first request said.
    handshake: Handshake,
    /// The server.
    pub(crate) shared: Arc<Shared>,
    /// What changes.
    pub(crate) state: Mutex<State>,
}

/// What a WebSocket's task is to do next.
pub(crate) enum Outgoing {
    /// Write the batch.
    Write,
    /// Nothing waits.
    Rest,
    /// Say farewell.
    End(Ending),
}

impl Connection {
    /// A connection that nobody has been told of yet.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        handshake: Handshake,
        transport: Transport,
        revision: Revision,
    ) -> Arc<Self> {
        let state = State {
            phase: Phase::Open,
            transport,
            inbox: None,
            queue: Queue::default(),
            waker: None,
            beat: Beat::new(revision, shared.wheel.now(), &shared.times),
        };
        Arc::new(Self {
            sid: Sid::new(),
            revision,
            handshake,
            shared: shared.clone(),
            state: Mutex::new(state),
        })
    }

    /// Queues the open packet, the first of every session.
    pub(crate) fn say_open(&self) {
        let open = self.shared.open_packet(self.sid, self.is_websocket());
        self.state.lock().queue.push(Frame::packet(b'0', &open));
    }

    /// From now on `inbox` hears of the session; at once of its end, when that came while it was being opened.
    pub(crate) fn listen(&self, inbox: Arc<dyn Inbox>) {
        let mut state = self.state.lock();
        if let Phase::Gone(reason) = state.phase {
            drop(state);
            return inbox.closed(self, reason);
        }
        state.inbox = Some(inbox);
    }

    /// The session's name; whoever knows it may speak for the client.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The protocol that the client speaks.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What the first request said.
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// Whether a WebSocket carries it now.
    pub fn is_websocket(&self) -> bool {
        matches!(self.state.lock().transport, Transport::WebSocket)
    }

    /// Whether a message would go out at once; Socket.IO's volatile messages are dropped where it would not.
    pub fn is_ready(&self) -> bool {
        let state = self.state.lock();
        let takes = match &state.transport {
            Transport::WebSocket => true,
            Transport::Polling(polling) => polling.has_get,
        };
        takes && state.queue.is_empty() && matches!(state.phase, Phase::Open)
    }

    /// Sends one message; what is closed already takes none and says nothing.
    pub fn send(&self, frame: &Frame) {
        self.send_all(std::slice::from_ref(frame));
    }

    /// Sends messages one after the other with nothing between them, as a packet and its attachments need it.
    pub fn send_all(&self, frames: &[Frame]) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        let settings = &self.shared.settings;
        if !state.queue.has_room(frames, (settings.queue_packets, settings.queue_bytes)) {
            debug!(sid = %self.sid, "slow consumer is cut");
            state.queue.take();
            return self.cut(state, Ending::silent(Reason::SlowConsumer));
        }
        for frame in frames {
            state.queue.push(match self.revision {
                Revision::Four => frame.clone(),
                Revision::Three => frame.clone().revision_3(),
            });
        }
        self.shared.counters.sent(frames.len());
        wake(state);
    }

    /// Closes: what was sent before still goes out, what is sent after does not.
    pub fn close(&self, kind: CloseKind) {
        let state = self.state.lock();
        if kind == CloseKind::Restart && matches!(state.transport, Transport::Polling(_)) {
            // There is no time to wait for its next GET, which will find another node.
            return self.cut(state, kind.ending());
        }
        drop(state);
        self.end(kind.ending());
    }

    /// Closes at once where it polls: nothing is kept for the GET that its client could be told by. A WebSocket is closed
    /// as ever.
    pub fn abort(&self, kind: CloseKind) {
        let state = self.state.lock();
        if matches!(state.transport, Transport::Polling(_)) {
            return self.cut(state, kind.ending());
        }
        drop(state);
        self.end(kind.ending());
    }

    /// Begins an end that lets what waits go out first.
    pub(crate) fn end(&self, ending: Ending) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Open) {
            let time =
                if matches!(state.transport, Transport::WebSocket) { CLOSE_TIME } else { POLLING_CLOSE_TIME };
            let deadline = self.shared.wheel.now() + time;
            state.phase = Phase::Closing(ending, deadline);
            self.shared.look_at(self.sid, deadline);
            wake(state);
        }
    }

    /// The client broke a rule: a WebSocket still gets what waits and is told; a polling session just ends.
    fn fault(&self, reason: Reason) -> More {
        let state = self.state.lock();
        if matches!(state.transport, Transport::WebSocket) {
            drop(state);
            self.end(Ending::empty(reason));
        } else {
            self.cut(state, Ending::empty(reason));
        }
        false
    }

    /// Ends at once. Somebody else has to tell the layer above: the WebSocket's task, the waiting GET, or the wheel.
    fn cut(&self, mut state: MutexGuard<'_, State>, ending: Ending) {
        if matches!(state.phase, Phase::Open | Phase::Closing(..)) {
            state.phase = Phase::Cut(ending);
            self.shared.look_at(self.sid, 0);
            wake(state);
        }
    }

    /// The connection has ended: it leaves the table, and the layer above is told, once. An end that had begun keeps its
    /// own reason.
    pub(crate) fn finish(&self, reason: Reason) {
        let mut state = self.state.lock();
        let reason = match state.phase {
            Phase::Gone(_) => return,
            Phase::Closing(ending, _) | Phase::Cut(ending) => ending.reason,
            Phase::Open => reason,
        };
        state.phase = Phase::Gone(reason);
        state.queue.take();
        let is_websocket = matches!(state.transport, Transport::WebSocket);
        let inbox = state.inbox.take();
        wake(state);
        self.shared.sessions.remove(self.sid);
        self.shared.counters.closed(is_websocket, reason);
        if let Some(inbox) = inbox {
            inbox.closed(self, reason);
        }
    }

    /// Takes one packet of the client; `None` is something that was none. Says whether the next one is wanted.
    pub(crate) fn receive(self: &Arc<Self>, inbox: &Arc<dyn Inbox>, packet: Option<Packet<'_>>) -> More {
        let (now, times) = (self.shared.wheel.now(), &self.shared.times);
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Open) {
            return false;
        }
        match (packet, self.revision) {
            (None, _) => {
                drop(state);
                return self.fault(Reason::ParseError);
            }
            (Some(Packet::Ping(_)), Revision::Three) => {
                state.beat.ping(now, times);
                drop(state);
                self.send(&Frame::pong());
            }
            (Some(Packet::Pong), Revision::Four) => state.beat.pong(now, times),
            (Some(Packet::Ping(_) | Packet::Pong), _) => {
                drop(state);
                return self.fault(Reason::TransportError);
            }
            (Some(packet), _) => {
                state.beat.heard(now, times);
                drop(state);
                self.deliver(inbox, packet);
            }
        }
        true
    }

    fn deliver(self: &Arc<Self>, inbox: &Arc<dyn Inbox>, packet: Packet<'_>) {
        match packet {
            Packet::Message(message) => inbox.message(self, message),
            Packet::Bytes(data) => inbox.message(self, Message::Binary(&data)),
            _ => return,
        }
        self.shared.counters.received();
    }

    /// A WebSocket control frame to be written in its turn. A client that does not read its pongs is cut like any.
    pub(crate) fn control(&self, frame: Frame) {
        debug_assert_eq!(frame.kind(), Kind::Control);
        self.send_all(&[frame]);
    }

    /// A sign of life of the transport itself.
    pub(crate) fn alive(&self) {
        let now = self.shared.wheel.now();
        self.state.lock().beat.alive(now);
    }

    /// The wheel's look: pings, times out, and says when to look again.
    pub(crate) fn look(self: &Arc<Self>, now: u64) -> Option<u64> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Gone(_) => None,
            Phase::Open => match state.beat.turn(self.revision, now, &self.shared.times) {
                Turn::Wait(next) => Some(next),
                Turn::Ping(next) => {
                    state.queue.push(Frame::ping());
                    wake(state);
                    Some(next)
                }
                Turn::TimedOut => {
                    self.cut(state, Ending::empty(Reason::PingTimeout));
                    None
                }
            },
            Phase::Closing(_, deadline) if now < deadline => Some(deadline),
            Phase::Closing(ending, _) | Phase::Cut(ending) => {
                if matches!(state.transport, Transport::WebSocket) {
                    // Its task tells the layer above; a socket that takes nothing more is dropped.
                    if matches!(state.phase, Phase::Closing(..)) {
                        state.phase = Phase::Cut(Ending::silent(ending.reason));
                    }
                    wake(state);
                } else {
                    drop(state);
                    self.finish(ending.reason);
                }
                None
            }
        }
    }

    /// What its WebSocket is to write next; `is_between` says that it is not in the middle of a frame.
    pub(crate) fn outgoing(&self, batch: &mut Batch, is_between: bool) -> Outgoing {
        let state = self.state.lock();
        match state.phase {
            Phase::Cut(ending) if is_between => return Outgoing::End(ending),
            Phase::Cut(ending) => return Outgoing::End(Ending::silent(ending.reason)),
            Phase::Closing(ending, _) if state.queue.is_empty() => return Outgoing::End(ending),
            Phase::Open if state.queue.is_empty() => return Outgoing::Rest,
            Phase::Gone(_) => return Outgoing::End(Ending::silent(Reason::TransportClose)),
            Phase::Open | Phase::Closing(..) => {}
        }
        state.queue.batch(batch);
        Outgoing::Write
    }

    /// Its WebSocket has written `count` bytes more; see [`Queue::written`].
    pub(crate) fn written(&self, count: usize, offset: usize) -> usize {
        self.state.lock().queue.written(count, offset)
    }

    /// Its task goes to sleep; `false` when there is something to do first. A task that cannot write has nothing to do
    /// for what waits.
    pub(crate) fn sleep(&self, waker: &Waker, is_blocked: bool) -> bool {
        let mut state = self.state.lock();
        let may_sleep = match state.phase {
            Phase::Open => is_blocked || state.queue.is_empty(),
            Phase::Closing(..) => is_blocked,
            Phase::Cut(_) | Phase::Gone(_) => false,
        };
        if may_sleep {
            state.waker = Some(waker.clone());
        }
        may_sleep
    }

    /// Its task is awake: who sends need not wake it.
    pub(crate) fn awake(&self) {
        self.state.lock().waker = None;
    }
}

/// Wakes the task that writes, after the lock was given back.
pub(crate) fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}
