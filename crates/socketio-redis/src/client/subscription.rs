//! One subscription: its channel or pattern, and the commands for it.

use std::sync::Arc;

/// One channel or pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// How it is subscribed to.
    pub kind: SubscriptionKind,
    /// The channel, or the pattern.
    pub channel: Arc<str>,
}

/// The way in which a channel is subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubscriptionKind {
    /// SUBSCRIBE.
    Channel,
    /// PSUBSCRIBE.
    Pattern,
    /// SSUBSCRIBE, where each channel lives on the master of its slot.
    Shard,
}

impl SubscriptionKind {
    pub(super) fn subscribe_command(self) -> &'static str {
        match self {
            SubscriptionKind::Channel => "SUBSCRIBE",
            SubscriptionKind::Pattern => "PSUBSCRIBE",
            SubscriptionKind::Shard => "SSUBSCRIBE",
        }
    }

    pub(super) fn unsubscribe_command(self) -> &'static str {
        match self {
            SubscriptionKind::Channel => "UNSUBSCRIBE",
            SubscriptionKind::Pattern => "PUNSUBSCRIBE",
            SubscriptionKind::Shard => "SUNSUBSCRIBE",
        }
    }
}
