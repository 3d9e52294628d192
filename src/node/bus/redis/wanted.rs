//! What a node wants to hear, and who hears it: the table that survives connections.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};

use super::line::Via;

/// A message that was heard.
#[derive(Debug)]
pub struct Heard {
    /// The channel that it was published on.
    pub channel: String,
    /// What was published.
    pub payload: Vec<u8>,
}

/// Whoever hears a channel; called on the supervisor's task, in the order of the messages, and must not block.
pub type Listener = Arc<dyn Fn(Heard) + Send + Sync>;

/// One channel or pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wish {
    /// How it is subscribed to.
    pub via: Via,
    /// The channel, or the pattern.
    pub channel: Arc<str>,
}

/// One wish's other half.
struct Ear {
    listener: Listener,
    /// Whether no other node subscribes to this channel, so that a count of 0 proves the subscription lost.
    own: bool,
}

/// All wishes of a node.
#[derive(Default)]
pub struct Wanted {
    ears: Mutex<HashMap<Wish, Ear>>,
}

impl Wanted {
    /// Adds or replaces a wish.
    pub fn add(&self, wish: Wish, listener: Listener, own: bool) {
        self.ears.lock().insert(wish, Ear { listener, own });
    }

    /// Takes a wish back.
    pub fn remove(&self, wish: &Wish) {
        self.ears.lock().remove(wish);
    }

    /// Whether it is still wanted.
    pub fn contains(&self, wish: &Wish) -> bool {
        self.ears.lock().contains_key(wish)
    }

    /// Every wish.
    pub fn all(&self) -> Vec<Wish> {
        self.ears.lock().keys().cloned().collect()
    }

    /// The wishes that no other node shares.
    pub fn own(&self) -> Vec<Wish> {
        let ears = self.ears.lock();
        ears.iter().filter(|(_, ear)| ear.own).map(|(wish, _)| wish.clone()).collect()
    }

    /// Hands a message to whoever wants it. Says whether the push was a message at all.
    pub fn hear(&self, push: PushInfo) -> bool {
        let (via, pattern, channel, payload) = match (push.kind, take_parts(push.data)) {
            (PushKind::Message, Some((None, channel, payload))) => {
                (Via::Channel, channel.clone(), channel, payload)
            }
            (PushKind::SMessage, Some((None, channel, payload))) => {
                (Via::Shard, channel.clone(), channel, payload)
            }
            (PushKind::PMessage, Some((Some(pattern), channel, payload))) => {
                (Via::Pattern, pattern, channel, payload)
            }
            _ => return false,
        };
        let wish = Wish { via, channel: pattern.into() };
        // Cloned, so that a listener may change the table.
        let listener = self.ears.lock().get(&wish).map(|ear| ear.listener.clone());
        if let Some(listener) = listener {
            listener(Heard { channel, payload });
        }
        true
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

    fn push(kind: PushKind, parts: &[&str]) -> PushInfo {
        PushInfo {
            kind,
            data: parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn a_message_reaches_the_one_who_wants_its_channel_in_its_way() {
        let (wanted, heard) = (Wanted::default(), Arc::new(Mutex::new(Vec::new())));
        for (via, channel) in [(Via::Channel, "a"), (Via::Shard, "a"), (Via::Pattern, "a*")] {
            let heard = heard.clone();
            let listener = move |message: Heard| {
                let text = String::from_utf8(message.payload).unwrap();
                heard.lock().push(format!("{via:?} {} {text}", message.channel));
            };
            wanted.add(Wish { via, channel: channel.into() }, Arc::new(listener), via == Via::Shard);
        }
        assert!(wanted.hear(push(PushKind::Message, &["a", "1"])));
        assert!(wanted.hear(push(PushKind::SMessage, &["a", "2"])));
        assert!(wanted.hear(push(PushKind::PMessage, &["a*", "ab", "3"])));
        assert!(wanted.hear(push(PushKind::Message, &["b", "nobody"])));
        assert!(!wanted.hear(push(PushKind::Subscribe, &["a"])));
        assert_eq!(*heard.lock(), ["Channel a 1", "Shard a 2", "Pattern ab 3"]);
        assert_eq!(wanted.own(), [Wish { via: Via::Shard, channel: "a".into() }]);
        assert_eq!(wanted.all().len(), 3);
        wanted.remove(&wanted.own()[0]);
        assert!(wanted.own().is_empty());
    }
}
