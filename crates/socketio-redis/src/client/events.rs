//! The queue between the subscription connections and the subscriber.
//!
//! All connections share one events, so that what one connection says keeps its order: a confirmation, then the messages
//! after it. It is bounded: a node that cannot keep up loses messages, counted, and not its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use redis::{PushInfo, RedisError, RedisResult, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::redis_connection::{OnPush, SubscriberConnection};
use super::slots::SlotMap;
use super::subscription::Subscription;

/// Bytes of payload that may wait in an queue.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What happens to a subscription connection.
pub(super) enum SubscriberEvent {
    /// The server pushed something.
    Push(PushInfo),
    /// An attempt to connect is over.
    Connected(RedisResult<SubscriberConnection>),
    /// A batch of commands was answered; these were refused or lost.
    Answered(Vec<(Subscription, RedisError)>),
    /// What the server counts for this connection.
    Counted(RedisResult<Value>),
    /// Whether a probe was published.
    Published(bool),
    /// Which master has which slots. It belongs to no connection.
    Slots(RedisResult<SlotMap>),
}

/// The end where events are put, for one connection.
#[derive(Clone)]
pub(super) struct EventSender {
    sender: UnboundedSender<(u64, SubscriberEvent)>,
    /// Bytes of payload that wait now.
    waiting: Arc<AtomicUsize>,
    /// Messages that found no room.
    dropped: Arc<AtomicUsize>,
    /// Which connection.
    id: u64,
}

impl EventSender {
    /// The two ends.
    pub(super) fn new() -> (EventSender, EventReceiver) {
        let (sender, receiver) = unbounded_channel();
        let events = EventSender { sender, waiting: Arc::default(), dropped: Arc::default(), id: 0 };
        let receiver =
            EventReceiver { receiver, waiting: events.waiting.clone(), dropped: events.dropped.clone() };
        (events, receiver)
    }

    /// The same events for the connection of that number.
    pub(super) fn for_connection(&self, id: u64) -> EventSender {
        EventSender { id, ..self.clone() }
    }

    /// What puts everything in that a server pushes.
    pub(super) fn push_handler(self) -> OnPush {
        Arc::new(move |push| self.send(SubscriberEvent::Push(push)))
    }

    /// Puts an event in. A message that finds no room is dropped.
    pub(super) fn send(&self, event: SubscriberEvent) {
        let size = payload_size(&event);
        if size > 0 && self.waiting.fetch_add(size, Relaxed) + size > MAX_WAITING_BYTES {
            self.waiting.fetch_sub(size, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        // Whoever would take it has ended.
        let _ = self.sender.send((self.id, event));
    }
}

/// The end where they are taken.
pub(super) struct EventReceiver {
    receiver: UnboundedReceiver<(u64, SubscriberEvent)>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl EventReceiver {
    /// The next event and its connection's number; none when nobody can put any more in.
    pub(super) async fn recv(&mut self) -> Option<(u64, SubscriberEvent)> {
        let (id, event) = self.receiver.recv().await?;
        self.waiting.fetch_sub(payload_size(&event), Relaxed);
        Some((id, event))
    }

    /// How many messages found no room since the last time this was asked.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed) as u64
    }
}

fn payload_size(event: &SubscriberEvent) -> usize {
    match event {
        SubscriberEvent::Push(PushInfo { data, .. }) => match data.last() {
            Some(Value::BulkString(bytes)) => bytes.len(),
            _ => 0,
        },
        _ => 0,
    }
}
