//! An event on its way to this node's clients: encoded once for each protocol, whatever the number of clients.

use std::cell::OnceCell;

use bytes::Bytes;
use socketio_redis::packet::{self, PacketFrames};

use crate::engine_io::Frame;
use socketio_redis::adapter::MissedEvent;
use socketio_redis::value::Value;

/// An event that is being delivered to clients of this node.
pub struct Event<'a> {
    /// The namespace that it belongs to.
    namespace: &'a str,
    /// The event's name, then its arguments.
    data: &'a [Value],
    /// The number under which an answer is wanted.
    id: Option<u64>,
    /// Its place in the log.
    offset: Option<&'a str>,
    frames: OnceCell<PacketFrames<Frame>>,
    /// Keeps its encoding beyond its delivery.
    missed: Option<&'a MissedEvent>,
    text: OnceCell<Bytes>,
}

impl<'a> Event<'a> {
    /// An event that wants no answer.
    pub fn new(namespace: &'a str, data: &'a [Value], offset: Option<&'a str>) -> Self {
        Self {
            namespace,
            data,
            id: None,
            offset,
            frames: OnceCell::new(),
            missed: None,
            text: OnceCell::new(),
        }
    }

    /// An event that wants an answer under this number; it has no offset.
    pub fn asking(namespace: &'a str, data: &'a [Value], id: u64) -> Self {
        Self { id: Some(id), ..Self::new(namespace, data, None) }
    }

    /// An event of the log, for a client that has missed it.
    pub(crate) fn replayed(namespace: &'a str, missed: &'a MissedEvent) -> Self {
        let offset = Some(&*missed.offset);
        Self { missed: Some(missed), ..Self::new(namespace, &missed.data, offset) }
    }

    /// The event's name, then its arguments.
    pub fn data(&self) -> &'a [Value] {
        self.data
    }

    /// As Socket.IO writes it.
    pub fn frames(&self) -> &PacketFrames<Frame> {
        let encode = || packet::encode_event(self.namespace, self.id, self.data, self.offset);
        let kept = self.missed.and_then(|missed| missed.encode_once(encode));
        kept.unwrap_or_else(|| self.frames.get_or_init(encode))
    }

    /// As another protocol writes it; made by the first client that needs it.
    pub fn text(&self, write: impl FnOnce(&[Value]) -> Bytes) -> &Bytes {
        self.text.get_or_init(|| write(self.data))
    }
}
