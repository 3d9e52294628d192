//! Where what the subscription connections hear waits until the subscriber takes it.
//!
//! All connections share one inbox, so that what one connection says keeps its order: a confirmation, then the messages
//! after it. It is bounded: a node that cannot keep up loses messages, counted, and not its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use redis::{PushInfo, RedisError, RedisResult, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::line::SubscriptionLine;
use super::slots::SlotMap;
use super::wanted::Wish;

/// Bytes of payload that may wait in an [`Inbox`].
const MOST_WAITING: usize = 64 << 20;

/// What happens to a subscription connection.
pub(super) enum Event {
    /// The server pushed something.
    Push(PushInfo),
    /// An attempt to connect is over.
    Connected(RedisResult<SubscriptionLine>),
    /// A batch of commands was answered; these were refused or lost.
    Answered(Vec<(Wish, RedisError)>),
    /// What the server counts for this connection.
    Counted(RedisResult<Value>),
    /// Whether a probe was published.
    Published(bool),
    /// Which master has which slots. It belongs to no connection.
    Slots(RedisResult<SlotMap>),
}

/// The end where events are put, for one connection.
#[derive(Clone)]
pub(super) struct Inbox {
    sender: UnboundedSender<(u64, Event)>,
    /// Bytes of payload that wait now.
    waiting: Arc<AtomicUsize>,
    /// Messages that found no room.
    dropped: Arc<AtomicUsize>,
    /// Which connection.
    id: u64,
}

impl Inbox {
    /// The two ends.
    pub fn new() -> (Inbox, Outlet) {
        let (sender, receiver) = unbounded_channel();
        let inbox = Inbox { sender, waiting: Arc::default(), dropped: Arc::default(), id: 0 };
        let outlet = Outlet { receiver, waiting: inbox.waiting.clone(), dropped: inbox.dropped.clone() };
        (inbox, outlet)
    }

    /// The same inbox for the connection of that number.
    pub fn of(&self, id: u64) -> Inbox {
        Inbox { id, ..self.clone() }
    }

    /// Puts an event in. A message that finds no room is dropped.
    pub fn put(&self, event: Event) {
        let size = payload_size(&event);
        if size > 0 && self.waiting.fetch_add(size, Relaxed) + size > MOST_WAITING {
            self.waiting.fetch_sub(size, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        // Whoever would take it has ended.
        let _ = self.sender.send((self.id, event));
    }
}

/// The end where they are taken.
pub(super) struct Outlet {
    receiver: UnboundedReceiver<(u64, Event)>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Outlet {
    /// The next event and its connection's number; none when nobody can put any more in.
    pub async fn take(&mut self) -> Option<(u64, Event)> {
        let (id, event) = self.receiver.recv().await?;
        self.waiting.fetch_sub(payload_size(&event), Relaxed);
        Some((id, event))
    }

    /// How many messages found no room since the last time this was asked.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed) as u64
    }
}

fn payload_size(event: &Event) -> usize {
    match event {
        Event::Push(PushInfo { data, .. }) => match data.last() {
            Some(Value::BulkString(bytes)) => bytes.len(),
            _ => 0,
        },
        _ => 0,
    }
}
