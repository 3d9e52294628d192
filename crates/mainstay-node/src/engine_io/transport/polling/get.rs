//! The connection's side of polling: what a waiting GET gets, and the move to a WebSocket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::engine_io::session::connection::{Connection, wake};
use crate::engine_io::session::frame::Frame;
use crate::engine_io::session::message_handler::MessageHandler;
use crate::engine_io::session::packet::Revision;
use crate::engine_io::session::state::{ConnectionPhase, PollingState, Transport};
use crate::engine_io::transport::polling::payload::PayloadFormat;
use crate::engine_io::transport::polling::requests::GetStart;

impl Connection {
    /// A GET comes.
    pub(crate) fn begin_get(&self) -> GetStart {
        let mut state = self.state.lock();
        let is_empty = state.queue.is_empty();
        let is_closing = matches!(state.phase, ConnectionPhase::Closing(..));
        let is_gone = matches!(state.phase, ConnectionPhase::Ended(_));
        match &mut state.transport {
            Transport::Polling(polling) if !is_gone => {
                if std::mem::replace(&mut polling.has_get, true) {
                    return GetStart::Overlaps;
                }
                // Node says a noop first to who comes back to a session that was closed meanwhile.
                polling.is_released = is_closing && is_empty;
                GetStart::Waits
            }
            _ => GetStart::Gone,
        }
    }

    /// What the waiting GET is answered with, as soon as there is something.
    pub(crate) fn poll_get(&self, cx: &mut Context<'_>) -> Poll<VecDeque<Frame>> {
        let mut state = self.state.lock();
        let phase = state.phase;
        let is_empty = state.queue.is_empty();
        let Transport::Polling(polling) = &mut state.transport else {
            return Poll::Ready([Frame::noop()].into());
        };
        let frames: VecDeque<Frame> = match phase {
            ConnectionPhase::Open | ConnectionPhase::Closing(..) if !is_empty => state.queue.take(),
            ConnectionPhase::Open if polling.is_released => [Frame::noop()].into(),
            ConnectionPhase::Open => {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            ConnectionPhase::Closing(..) if polling.is_released => [Frame::noop(), Frame::close()].into(),
            ConnectionPhase::Ended(_) if polling.client_left => [Frame::noop()].into(),
            ConnectionPhase::Closing(..) | ConnectionPhase::Cut(_) | ConnectionPhase::Ended(_) => {
                [Frame::close()].into()
            }
        };
        if let Transport::Polling(polling) = &mut state.transport {
            (polling.has_get, polling.is_released) = (false, false);
        }
        drop(state);
        if let (true, ConnectionPhase::Closing(ending, _)) | (_, ConnectionPhase::Cut(ending)) =
            (is_empty, phase)
        {
            self.finish(ending.reason);
        }
        Poll::Ready(frames)
    }

    /// Ends a session that broke a rule in the request that is just being answered.
    pub(crate) fn finish_cut(&self) {
        let phase = self.state.lock().phase;
        if let ConnectionPhase::Cut(ending) = phase {
            self.finish(ending.reason);
        }
    }

    /// A WebSocket wants to take over; `false` when it may not, because another does or has.
    pub(crate) fn begin_probe(&self) -> bool {
        self.polling(|polling| !std::mem::replace(&mut polling.is_probed, true)) == Some(true)
    }

    /// The probe was answered, or (`false`) came to nothing. While it stands, polls are released.
    pub(crate) fn set_probe(&self, stands: bool) {
        self.polling(|polling| (polling.is_probed, polling.is_upgrading) = (stands, stands));
    }

    /// Answers the waiting GET of a session that is on its way to a WebSocket, so that the client can go on. Says
    /// whether there still is such a session.
    pub(crate) fn release_get(&self) -> bool {
        let mut state = self.state.lock();
        if matches!(state.phase, ConnectionPhase::Ended(_)) {
            return false;
        }
        match &mut state.transport {
            Transport::Polling(polling) if polling.is_upgrading && polling.has_get => {
                polling.is_released = true;
                wake(state);
                true
            }
            Transport::Polling(_) => true,
            Transport::WebSocket => false,
        }
    }

    /// The WebSocket takes over: what waits goes out there. `false` when the session has ended meanwhile.
    pub(crate) fn switch_to_websocket(&self) -> bool {
        let mut state = self.state.lock();
        if matches!(state.phase, ConnectionPhase::Ended(_) | ConnectionPhase::Cut(_)) {
            return false;
        }
        state.transport = Transport::WebSocket;
        wake(state);
        self.context.counters.record_upgraded();
        true
    }

    /// The requests of a polling session, while it is one.
    pub(crate) fn polling<T>(&self, look: impl FnOnce(&mut PollingState) -> T) -> Option<T> {
        match &mut self.state.lock().transport {
            Transport::Polling(polling) => Some(look(polling)),
            Transport::WebSocket => None,
        }
    }

    /// Where the messages go, until the session has ended.
    pub(crate) fn handler(&self) -> Option<Arc<dyn MessageHandler>> {
        self.state.lock().handler.clone()
    }

    /// The form of the client's texts.
    pub(crate) fn text_format(&self) -> PayloadFormat {
        PayloadFormat { revision: self.revision(), takes_binary: false }
    }

    /// Whether a request speaks the protocol of the session.
    pub(crate) fn speaks(&self, revision: Revision) -> bool {
        self.revision() == revision
    }
}
