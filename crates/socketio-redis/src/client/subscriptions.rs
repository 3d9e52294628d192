//! The table of subscriptions, which survives connections: each with its listener and the connection that has it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, oneshot};

use super::subscription::{Subscription, SubscriptionKind};

/// A message of a channel.
#[derive(Debug)]
pub struct ReceivedMessage {
    /// The channel that it was published on.
    pub channel: String,
    /// What was published.
    pub payload: Vec<u8>,
}

/// Receives the messages of a subscription in their order, on the subscriber's task. It must not block.
pub type Listener = Arc<dyn Fn(ReceivedMessage) + Send + Sync>;

/// Who listens, and on which connection.
struct Registration {
    listener: Listener,
    /// The connection whose server has confirmed the subscription. Only what that one hears counts, so that a message
    /// is heard once while a subscription moves from one connection to another.
    holder: Option<u64>,
    /// Wakes those who wait for the confirmation.
    waiting: Vec<oneshot::Sender<()>>,
}

/// All subscriptions of a client.
#[derive(Default)]
pub(super) struct Subscriptions {
    table: Mutex<SubscriptionTable>,
    /// A subscription was added or removed.
    changed: Notify,
}

#[derive(Default)]
struct SubscriptionTable {
    registrations: HashMap<Subscription, Registration>,
    /// Wakes those who wait until a subscription has ended.
    leaving: HashMap<Subscription, Vec<oneshot::Sender<()>>>,
    /// What has changed since the subscriber looked.
    changed: Vec<Subscription>,
}

impl Subscriptions {
    /// Adds or replaces a subscription.
    pub(super) fn insert(&self, subscription: Subscription, listener: Listener) {
        let mut table = self.table.lock();
        let before = table.registrations.remove(&subscription);
        let (holder, waiting) =
            before.map_or((None, Vec::new()), |registration| (registration.holder, registration.waiting));
        table.registrations.insert(subscription.clone(), Registration { listener, holder, waiting });
        table.changed.push(subscription);
        self.changed.notify_one();
    }

    /// Takes a subscription back.
    pub(super) fn remove(&self, subscription: &Subscription) {
        let mut table = self.table.lock();
        table.registrations.remove(subscription);
        table.changed.push(subscription.clone());
        self.changed.notify_one();
    }

    /// Every subscription.
    pub(super) fn all(&self) -> Vec<Subscription> {
        self.table.lock().registrations.keys().cloned().collect()
    }

    /// What to wait for until the server has confirmed a subscription; none if it has, or it is not wanted.
    pub(super) fn wait_for_confirmation(&self, subscription: &Subscription) -> Option<oneshot::Receiver<()>> {
        let mut table = self.table.lock();
        let registration =
            table.registrations.get_mut(subscription).filter(|registration| registration.holder.is_none())?;
        let (sender, receiver) = oneshot::channel();
        registration.waiting.push(sender);
        Some(receiver)
    }

    /// What to wait for until no connection has the subscription; none if it is wanted again.
    pub(super) fn wait_for_release(&self, subscription: &Subscription) -> Option<oneshot::Receiver<()>> {
        let mut table = self.table.lock();
        if table.registrations.contains_key(subscription) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        table.leaving.entry(subscription.clone()).or_default().push(sender);
        // The subscriber may have looked at it already.
        table.changed.push(subscription.clone());
        self.changed.notify_one();
        Some(receiver)
    }

    /// Returns when something has changed, perhaps nothing.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What has changed since the last time.
    pub(super) fn take_changed(&self) -> Vec<Subscription> {
        std::mem::take(&mut self.table.lock().changed)
    }

    /// The connection that a subscription is confirmed on; none if it is not wanted.
    pub(super) fn holder(&self, subscription: &Subscription) -> Option<Option<u64>> {
        self.table.lock().registrations.get(subscription).map(|registration| registration.holder)
    }

    /// A connection has the subscription from now on. Gives the one that had it before; none if it is not wanted.
    pub(super) fn confirm(&self, subscription: &Subscription, connection: u64) -> Option<Option<u64>> {
        let mut table = self.table.lock();
        let registration = table.registrations.get_mut(subscription)?;
        // Whoever waited may have gone.
        registration.waiting.drain(..).for_each(|waiting| waiting.send(()).unwrap_or_default());
        Some(registration.holder.replace(connection))
    }

    /// A connection does not have the subscription any more.
    pub(super) fn mark_lost(&self, subscription: &Subscription, connection: u64) {
        if let Some(registration) = self.table.lock().registrations.get_mut(subscription)
            && registration.holder == Some(connection)
        {
            registration.holder = None;
        }
    }

    /// No connection has the subscription.
    pub(super) fn mark_released(&self, subscription: &Subscription) {
        // Whoever waited may have gone.
        let waiting = self.table.lock().leaving.remove(subscription);
        waiting.into_iter().flatten().for_each(|waiting| waiting.send(()).unwrap_or_default());
    }

    /// Hands a message of a connection to whoever wants it from that one. Says whether there is anybody.
    pub(super) fn dispatch(&self, connection: u64, message: RoutedMessage) -> bool {
        // Cloned, so that a listener may change the table.
        let listener = {
            let table = self.table.lock();
            let registration = table
                .registrations
                .get(&message.subscription)
                .filter(|registration| registration.holder == Some(connection));
            registration.map(|registration| registration.listener.clone())
        };
        let Some(listener) = listener else { return false };
        listener(message.heard);
        true
    }
}

/// A message, and the subscription that it came for.
#[derive(Debug)]
pub(super) struct RoutedMessage {
    /// The subscription.
    pub subscription: Subscription,
    /// The message.
    pub heard: ReceivedMessage,
}

impl RoutedMessage {
    /// Reads a push; none if it is no message.
    pub(super) fn read(push: PushInfo) -> Option<RoutedMessage> {
        let (kind, pattern, channel, payload) = match (push.kind, take_parts(push.data)) {
            (PushKind::Message, Some((None, channel, payload))) => {
                (SubscriptionKind::Channel, channel.clone(), channel, payload)
            }
            (PushKind::SMessage, Some((None, channel, payload))) => {
                (SubscriptionKind::Shard, channel.clone(), channel, payload)
            }
            (PushKind::PMessage, Some((Some(pattern), channel, payload))) => {
                (SubscriptionKind::Pattern, pattern, channel, payload)
            }
            _ => return None,
        };
        Some(RoutedMessage {
            subscription: Subscription { kind, channel: pattern.into() },
            heard: ReceivedMessage { channel, payload },
        })
    }
}

/// Pattern, channel and payload of a message; none if a part is missing or a name is no UTF-8.
fn take_parts(data: Vec<Value>) -> Option<(Option<String>, String, Vec<u8>)> {
    let mut parts = data.into_iter().map(|part| match part {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    });
    let (first, second) = (parts.next()??, parts.next()??);
    let text = |bytes| String::from_utf8(bytes).ok();
    match parts.next() {
        Some(payload) => Some((Some(text(first)?), text(second)?, payload?)),
        None => Some((None, text(first)?, second)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(kind: PushKind, parts: &[&str]) -> RoutedMessage {
        let data = parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect();
        RoutedMessage::read(PushInfo { kind, data }).unwrap()
    }

    #[test]
    fn a_message_reaches_the_one_who_wants_its_channel_in_its_way() {
        let (wanted, heard) = (Subscriptions::default(), Arc::new(Mutex::new(Vec::new())));
        for (kind, channel) in [
            (SubscriptionKind::Channel, "a"),
            (SubscriptionKind::Shard, "a"),
            (SubscriptionKind::Pattern, "a*"),
        ] {
            let heard = heard.clone();
            let listener = move |message: ReceivedMessage| {
                let text = String::from_utf8(message.payload).unwrap();
                heard.lock().push(format!("{kind:?} {} {text}", message.channel));
            };
            let subscription = Subscription { kind, channel: channel.into() };
            wanted.insert(subscription.clone(), Arc::new(listener));
            assert_eq!(wanted.confirm(&subscription, 1), Some(None));
        }
        assert!(wanted.dispatch(1, push(PushKind::Message, &["a", "1"])));
        assert!(wanted.dispatch(1, push(PushKind::SMessage, &["a", "2"])));
        assert!(wanted.dispatch(1, push(PushKind::PMessage, &["a*", "ab", "3"])));
        assert!(!wanted.dispatch(1, push(PushKind::Message, &["b", "nobody"])));
        let data = vec![Value::BulkString(b"a".to_vec())];
        assert!(RoutedMessage::read(PushInfo { kind: PushKind::Subscribe, data }).is_none());
        assert_eq!(*heard.lock(), ["Channel a 1", "Shard a 2", "Pattern ab 3"]);
    }

    #[test]
    fn while_a_subscription_moves_its_messages_are_heard_from_one_connection() {
        let (wanted, heard) = (Subscriptions::default(), Arc::new(Mutex::new(Vec::new())));
        let (subscription, list) =
            (Subscription { kind: SubscriptionKind::Shard, channel: "a".into() }, heard.clone());
        wanted.insert(
            subscription.clone(),
            Arc::new(move |message: ReceivedMessage| list.lock().push(message.payload)),
        );
        let waiting = wanted.wait_for_confirmation(&subscription).unwrap();
        let said = |text| push(PushKind::SMessage, &["a", text]);
        assert!(!wanted.dispatch(1, said("not yet confirmed")));
        assert_eq!(wanted.confirm(&subscription, 1), Some(None));
        assert!(waiting.blocking_recv().is_ok() && wanted.wait_for_confirmation(&subscription).is_none());
        assert!(wanted.dispatch(1, said("one")));
        assert!(!wanted.dispatch(2, said("one")));
        assert_eq!(wanted.confirm(&subscription, 2), Some(Some(1)));
        wanted.mark_lost(&subscription, 1);
        assert!(!wanted.dispatch(1, said("two")) && wanted.dispatch(2, said("two")));
        assert_eq!(*heard.lock(), [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn whoever_waits_for_a_release_is_told_once_nobody_has_it() {
        let wanted = Subscriptions::default();
        let subscription = Subscription { kind: SubscriptionKind::Channel, channel: "a".into() };
        wanted.insert(subscription.clone(), Arc::new(|_| {}));
        assert!(wanted.wait_for_release(&subscription).is_none(), "it is wanted");
        wanted.remove(&subscription);
        let mut waiting = wanted.wait_for_release(&subscription).unwrap();
        assert!(waiting.try_recv().is_err());
        assert_eq!(wanted.take_changed().len(), 3);
        wanted.mark_released(&subscription);
        assert!(waiting.try_recv().is_ok());
    }
}
