//! One client's connection, as the layer above sees it: who it is, sending, closing.
//!
//! Rules: sending never blocks and never calls back; what a client does not read is bounded, and with more the client
//! is cut and counted. The layer above is told of the end exactly once, never from within one of its own calls to
//! the connection, and no message begins after that; one that another thread has already begun may still be running.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};
use tracing::debug;

use crate::engine_io::session::context::EngineContext;
use crate::engine_io::session::ending::{CloseKind, CloseReason, PendingClose};
use crate::engine_io::session::frame::{Frame, FrameKind};
use crate::engine_io::session::handshake::Handshake;
use crate::engine_io::session::heartbeat::{Heartbeat, HeartbeatAction};
use crate::engine_io::session::message_handler::MessageHandler;
use crate::engine_io::session::packet::EnginePacket;
use crate::engine_io::session::packet::{Message, Revision};
use crate::engine_io::session::sid::Sid;
use crate::engine_io::session::state::{ConnectionPhase, ConnectionState, SendQueue, Transport, WriteBatch};
use crate::engine_io::transport::websocket::reader::WantsMore;

/// How long a WebSocket may take to write what waits before it is closed.
const CLOSE_TIMEOUT: u64 = 5_000;

/// How long a polling session that was closed waits for the GET that it can be told by; Node's `closeTimeout`.
const POLLING_CLOSE_TIMEOUT: u64 = 30_000;

/// A session with one client, whatever carries it.
pub struct Connection {
    /// Its name.
    sid: Sid,
    /// The protocol its client speaks.
    revision: Revision,
    /// What its first request said.
    handshake: Handshake,
    /// The server.
    pub(crate) context: Arc<EngineContext<Connection>>,
    /// What changes.
    pub(crate) state: Mutex<ConnectionState>,
}

/// What a WebSocket's task is to do next.
pub(crate) enum WriteStep {
    /// Write the batch.
    Write,
    /// Nothing waits.
    Idle,
    /// Write the Close.
    Close(PendingClose),
}

impl Connection {
    /// A connection that nobody has been told of yet.
    pub(crate) fn new(
        shared: &Arc<EngineContext<Connection>>,
        handshake: Handshake,
        transport: Transport,
        revision: Revision,
    ) -> Arc<Self> {
        let state = ConnectionState {
            phase: ConnectionPhase::Open,
            transport,
            handler: None,
            queue: SendQueue::default(),
            waker: None,
            heartbeat: Heartbeat::new(revision, shared.timer_wheel.now(), &shared.times),
        };
        Arc::new(Self {
            sid: Sid::new(),
            revision,
            handshake,
            context: shared.clone(),
            state: Mutex::new(state),
        })
    }

    /// Queues the open packet, the first of every session.
    pub(crate) fn queue_open_packet(&self) {
        let open = self.context.open_packet(self.sid, self.is_websocket());
        self.state.lock().queue.push(Frame::packet(b'0', &open));
    }

    /// From now on `handler` hears of the session; at once of its end, when that came while it was being opened.
    pub(crate) fn set_handler(&self, handler: Arc<dyn MessageHandler>) {
        let mut state = self.state.lock();
        if let ConnectionPhase::Ended(reason) = state.phase {
            drop(state);
            return handler.closed(reason);
        }
        state.handler = Some(handler);
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
        takes && state.queue.is_empty() && matches!(state.phase, ConnectionPhase::Open)
    }

    /// Sends one message; what is closed already takes none and says nothing.
    pub fn send(&self, frame: &Frame) {
        self.send_all(std::slice::from_ref(frame));
    }

    /// Sends messages one after the other with nothing between them, as a packet and its attachments need it.
    pub fn send_all(&self, frames: &[Frame]) {
        let mut state = self.state.lock();
        if !matches!(state.phase, ConnectionPhase::Open) {
            return;
        }
        let settings = &self.context.settings;
        if !state.queue.has_room(frames, (settings.queue_packets, settings.queue_bytes)) {
            debug!(sid = %self.sid, "slow consumer closed");
            state.queue.take();
            return self.cut(state, PendingClose::without_frame(CloseReason::SlowConsumer));
        }
        for frame in frames {
            state.queue.push(match self.revision {
                Revision::Four => frame.clone(),
                Revision::Three => frame.clone().revision_3(),
            });
        }
        self.context.counters.record_sent(frames.len());
        wake(state);
    }

    /// Closes: what was sent before still goes out, what is sent after does not.
    pub fn close(&self, kind: CloseKind) {
        let state = self.state.lock();
        if kind == CloseKind::Restart && matches!(state.transport, Transport::Polling(_)) {
            // There is no time to wait for its next GET, which will find another node.
            return self.cut(state, kind.pending_close());
        }
        drop(state);
        self.begin_close(kind.pending_close());
    }

    /// Closes at once where it polls: nothing is kept for the GET that its client could be told by. A WebSocket is closed
    /// as ever.
    pub fn abort(&self, kind: CloseKind) {
        let state = self.state.lock();
        if matches!(state.transport, Transport::Polling(_)) {
            return self.cut(state, kind.pending_close());
        }
        drop(state);
        self.begin_close(kind.pending_close());
    }

    /// Begins an end that lets what waits go out first.
    pub(crate) fn begin_close(&self, ending: PendingClose) {
        let mut state = self.state.lock();
        if matches!(state.phase, ConnectionPhase::Open) {
            let time = if matches!(state.transport, Transport::WebSocket) {
                CLOSE_TIMEOUT
            } else {
                POLLING_CLOSE_TIMEOUT
            };
            let deadline = self.context.timer_wheel.now() + time;
            state.phase = ConnectionPhase::Closing(ending, deadline);
            self.context.schedule_check(self.sid, deadline);
            wake(state);
        }
    }

    /// The client broke a rule: a WebSocket still gets what waits and is told; a polling session just ends.
    fn close_for_violation(&self, reason: CloseReason) -> WantsMore {
        let state = self.state.lock();
        if matches!(state.transport, Transport::WebSocket) {
            drop(state);
            self.begin_close(PendingClose::with_empty_close(reason));
        } else {
            self.cut(state, PendingClose::with_empty_close(reason));
        }
        false
    }

    /// Ends at once. Somebody else has to tell the layer above: the WebSocket's task, the waiting GET, or the wheel.
    fn cut(&self, mut state: MutexGuard<'_, ConnectionState>, ending: PendingClose) {
        if matches!(state.phase, ConnectionPhase::Open | ConnectionPhase::Closing(..)) {
            state.phase = ConnectionPhase::Cut(ending);
            self.context.schedule_check(self.sid, 0);
            wake(state);
        }
    }

    /// The connection has ended: it leaves the table, and the layer above is told, once. An end that had begun keeps its
    /// own reason.
    pub(crate) fn finish(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        let reason = match state.phase {
            ConnectionPhase::Ended(_) => return,
            ConnectionPhase::Closing(ending, _) | ConnectionPhase::Cut(ending) => ending.reason,
            ConnectionPhase::Open => reason,
        };
        state.phase = ConnectionPhase::Ended(reason);
        state.queue.take();
        let is_websocket = matches!(state.transport, Transport::WebSocket);
        let handler = state.handler.take();
        wake(state);
        self.context.sessions.remove(self.sid);
        self.context.counters.record_closed(is_websocket, reason);
        if let Some(handler) = handler {
            handler.closed(reason);
        }
    }

    /// Takes one packet of the client; `None` is something that was none. Says whether the next one is wanted.
    pub(crate) fn receive(
        self: &Arc<Self>,
        handler: &Arc<dyn MessageHandler>,
        packet: Option<EnginePacket<'_>>,
    ) -> WantsMore {
        let (now, times) = (self.context.timer_wheel.now(), &self.context.times);
        let mut state = self.state.lock();
        if !matches!(state.phase, ConnectionPhase::Open) {
            return false;
        }
        match (packet, self.revision) {
            (None, _) => {
                drop(state);
                return self.close_for_violation(CloseReason::ParseError);
            }
            (Some(EnginePacket::Ping(_)), Revision::Three) => {
                state.heartbeat.ping_received(now, times);
                drop(state);
                self.send(&Frame::pong());
            }
            (Some(EnginePacket::Pong), Revision::Four) => state.heartbeat.pong_received(now, times),
            (Some(EnginePacket::Ping(_) | EnginePacket::Pong), _) => {
                drop(state);
                return self.close_for_violation(CloseReason::TransportError);
            }
            (Some(packet), _) => {
                state.heartbeat.packet_received(now, times);
                drop(state);
                self.deliver(handler, packet);
            }
        }
        true
    }

    fn deliver(self: &Arc<Self>, handler: &Arc<dyn MessageHandler>, packet: EnginePacket<'_>) {
        match packet {
            EnginePacket::Message(message) => handler.message(message),
            EnginePacket::Bytes(data) => handler.message(Message::Binary(&data)),
            _ => return,
        }
        self.context.counters.record_received();
    }

    /// A WebSocket control frame to be written in its turn. A client that does not read its pongs is cut like any.
    pub(crate) fn send_control(&self, frame: Frame) {
        debug_assert_eq!(frame.kind(), FrameKind::Control);
        self.send_all(&[frame]);
    }

    /// A sign of life of the transport itself.
    pub(crate) fn transport_alive(&self) {
        let now = self.context.timer_wheel.now();
        self.state.lock().heartbeat.transport_alive(now);
    }

    /// The wheel's look: pings, times out, and says when to look again.
    pub(crate) fn check_timers(self: &Arc<Self>, now: u64) -> Option<u64> {
        let mut state = self.state.lock();
        match state.phase {
            ConnectionPhase::Ended(_) => None,
            ConnectionPhase::Open => match state.heartbeat.check(self.revision, now, &self.context.times) {
                HeartbeatAction::Wait(next) => Some(next),
                HeartbeatAction::Ping(next) => {
                    state.queue.push(Frame::ping());
                    wake(state);
                    Some(next)
                }
                HeartbeatAction::TimedOut => {
                    self.cut(state, PendingClose::with_empty_close(CloseReason::PingTimeout));
                    None
                }
            },
            ConnectionPhase::Closing(_, deadline) if now < deadline => Some(deadline),
            ConnectionPhase::Closing(ending, _) | ConnectionPhase::Cut(ending) => {
                if matches!(state.transport, Transport::WebSocket) {
                    // Its task tells the layer above; a socket that takes nothing more is dropped.
                    if matches!(state.phase, ConnectionPhase::Closing(..)) {
                        state.phase = ConnectionPhase::Cut(PendingClose::without_frame(ending.reason));
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
    pub(crate) fn next_write(&self, batch: &mut WriteBatch, is_between: bool) -> WriteStep {
        let state = self.state.lock();
        match state.phase {
            ConnectionPhase::Cut(ending) if is_between => return WriteStep::Close(ending),
            ConnectionPhase::Cut(ending) => {
                return WriteStep::Close(PendingClose::without_frame(ending.reason));
            }
            ConnectionPhase::Closing(ending, _) if state.queue.is_empty() => return WriteStep::Close(ending),
            ConnectionPhase::Open if state.queue.is_empty() => return WriteStep::Idle,
            ConnectionPhase::Ended(_) => {
                return WriteStep::Close(PendingClose::without_frame(CloseReason::TransportClose));
            }
            ConnectionPhase::Open | ConnectionPhase::Closing(..) => {}
        }
        state.queue.fill_batch(batch);
        WriteStep::Write
    }

    /// Its WebSocket has written `count` bytes more; see [`SendQueue::consume`].
    pub(crate) fn consume_written(&self, count: usize, offset: usize) -> usize {
        self.state.lock().queue.consume(count, offset)
    }

    /// Its task goes to sleep; `false` when there is something to do first. A task that cannot write has nothing to do
    /// for what waits.
    pub(crate) fn try_sleep(&self, waker: &Waker, is_blocked: bool) -> bool {
        let mut state = self.state.lock();
        let may_sleep = match state.phase {
            ConnectionPhase::Open => is_blocked || state.queue.is_empty(),
            ConnectionPhase::Closing(..) => is_blocked,
            ConnectionPhase::Cut(_) | ConnectionPhase::Ended(_) => false,
        };
        if may_sleep {
            state.waker = Some(waker.clone());
        }
        may_sleep
    }

    /// Its task is awake: who sends need not wake it.
    pub(crate) fn clear_waker(&self) {
        self.state.lock().waker = None;
    }
}

/// Wakes the task that writes, after the lock was given back.
pub(crate) fn wake(mut state: MutexGuard<'_, ConnectionState>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}
