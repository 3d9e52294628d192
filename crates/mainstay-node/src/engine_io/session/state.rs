//! What changes in a connection: its phase, what waits to be written, and who is to be woken for it.
//!
//! It is behind one lock that is never held while anything is awaited, written to a socket or told to the layer above.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine_io::session::ending::{CloseReason, PendingClose};
use crate::engine_io::session::frame::Frame;
use crate::engine_io::session::heartbeat::Heartbeat;
use crate::engine_io::session::message_handler::MessageHandler;

/// Frames that go into one write.
pub(crate) const BATCH: usize = 16;

/// The bytes of some frames, for one write.
pub(crate) type WriteBatch = SmallVec<[Bytes; BATCH]>;

/// The changing half of a connection.
pub(crate) struct ConnectionState {
    /// How far on its way the connection is.
    pub(crate) phase: ConnectionPhase,
    /// What carries it now.
    pub(crate) transport: Transport,
    /// Where its messages go; gone once the connection has ended, because it may hold the connection in turn.
    pub(crate) handler: Option<Arc<dyn MessageHandler>>,
    /// Packets that wait to be written.
    pub(crate) queue: SendQueue,
    /// The task that writes them, while it sleeps.
    pub(crate) waker: Option<Waker>,
    /// The heartbeat.
    pub(crate) heartbeat: Heartbeat,
}

/// How far on its way a connection is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ConnectionPhase {
    /// Messages go both ways.
    Open,
    /// What waits is still written, then the connection ends; at the latest at that time of the timer wheel.
    Closing(PendingClose, u64),
    /// Ends at once.
    Cut(PendingClose),
    /// It has ended, and the layer above has been told why.
    Ended(CloseReason),
}

/// What carries a connection.
#[derive(Debug)]
pub(crate) enum Transport {
    /// A WebSocket, and a task of its own.
    WebSocket,
    /// Requests as they come. On the heap, because few sessions stay on it.
    Polling(Box<PollingState>),
}

/// A polling session's requests.
#[derive(Debug, Default)]
pub(crate) struct PollingState {
    /// A GET waits for packets.
    pub(crate) has_get: bool,
    /// A POST is being read.
    pub(crate) has_post: bool,
    /// A WebSocket probes; a second may not.
    pub(crate) is_probed: bool,
    /// Its probe was answered: the waiting GETs are released.
    pub(crate) is_upgrading: bool,
    /// Protocol 3: the client takes binary bodies.
    pub(crate) takes_binary: bool,
    /// The head of its scripts, for a client that polls by JSONP.
    pub(crate) jsonp: Option<Box<str>>,
    /// The waiting GET is to be answered with a noop, so that the upgrade can go on.
    pub(crate) is_released: bool,
    /// The credentials that the first request after the handshake showed, as bits; `None` until it has come.
    pub(crate) shown_credentials: Option<u8>,
    /// The client said `1`, so its waiting GET ends with a noop and not with a close.
    pub(crate) client_left: bool,
}

/// Packets that wait, and how much they are.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// In order of writing; without allocation while there is none.
    frames: VecDeque<Frame>,
    /// Bytes of all of them.
    bytes: usize,
}

impl SendQueue {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether `frames` may wait as well. An empty queue takes anything, or a single message over the bound could
    /// never be sent.
    pub(crate) fn has_room(&self, frames: &[Frame], most: (usize, usize)) -> bool {
        let bytes: usize = frames.iter().map(|frame| frame.wire().len()).sum();
        self.is_empty() || (self.frames.len() + frames.len() <= most.0 && self.bytes + bytes <= most.1)
    }

    /// Puts a frame at the end.
    pub(crate) fn push(&mut self, frame: Frame) {
        self.bytes += frame.wire().len();
        self.frames.push_back(frame);
    }

    /// The first frames, which stay in the queue until they are [`consume`](Self::consume)d.
    pub(crate) fn fill_batch(&self, batch: &mut WriteBatch) {
        batch.extend(self.frames.iter().take(BATCH).map(|frame| frame.wire().clone()));
    }

    /// `count` bytes were written, after the `offset` bytes of the first frame that were written before. Returns how
    /// many bytes of the now first frame are written.
    pub(crate) fn consume(&mut self, count: usize, offset: usize) -> usize {
        let mut done = offset + count;
        while let Some(first) = self.frames.front() {
            let length = first.wire().len();
            if done < length {
                return done;
            }
            done -= length;
            self.bytes -= length;
            self.frames.pop_front();
        }
        // The memory is given back: most connections are silent most of the time.
        self.frames = VecDeque::new();
        0
    }

    /// Takes everything out.
    pub(crate) fn take(&mut self) -> VecDeque<Frame> {
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_parts_leaves_the_queue_frame_by_frame() {
        let mut queue = SendQueue::default();
        for length in [3, 5, 1] {
            queue.push(Frame::binary(&vec![0; length]));
        }
        assert_eq!((queue.frames.len(), queue.bytes), (3, 15));
        assert_eq!(queue.consume(4, 0), 4);
        assert_eq!(queue.consume(1, 4), 0);
        assert_eq!(queue.consume(8, 0), 1);
        assert_eq!((queue.frames.len(), queue.bytes), (1, 3));
        assert_eq!(queue.consume(2, 1), 0);
        assert_eq!((queue.frames.capacity(), queue.bytes), (0, 0));
    }

    #[test]
    fn a_queue_is_bounded_in_packets_and_bytes_but_takes_one_large_message_when_empty() {
        let mut queue = SendQueue::default();
        let frame = Frame::binary(&[0; 8]);
        assert!(queue.has_room(std::slice::from_ref(&frame), (1, 5)));
        queue.push(frame.clone());
        assert!(queue.has_room(std::slice::from_ref(&frame), (2, 20)));
        assert!(!queue.has_room(std::slice::from_ref(&frame), (1, 20)));
        assert!(!queue.has_room(std::slice::from_ref(&frame), (2, 19)));
    }
}
