//! What the affinity sources of a request say.

use smallvec::SmallVec;

use super::cookie::CookiePolicy;
use super::source::{AffinitySource, HintSource};

/// What one source says about the node of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AffinityHint {
    /// The client belongs to this very node.
    Pin {
        /// Index of the node.
        node: usize,
        /// Who says so.
        source: HintSource,
    },
    /// The client belongs where this key falls.
    Key {
        /// Hash of the key.
        hash: u64,
        /// Where the key came from.
        source: HintSource,
    },
}

/// The hints of all sources, in order. They end at the first key, because a key can always be followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AffinityHints {
    /// Pins, and at the end perhaps a key.
    hints: SmallVec<[AffinityHint; 4]>,
    /// The first source with a valid pin that names no node of the pool.
    unknown_pin: Option<HintSource>,
    /// The cookies that were read.
    cookies: SmallVec<[ReadCookie; 1]>,
}

/// A cookie of the balancer that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReadCookie {
    /// Index of its policy among the sources.
    source: usize,
    /// The node for which it is valid and needs no renewal.
    valid_for: Option<usize>,
}

impl AffinityHints {
    /// The hints in order.
    pub fn as_slice(&self) -> &[AffinityHint] {
        &self.hints
    }

    /// The first source with a valid pin that names no node of the pool: the node was removed, or is in another pool.
    pub(crate) fn unknown_pin(&self) -> Option<HintSource> {
        self.unknown_pin
    }

    /// The policies whose cookie the response has to set, now that the client is on `node`: those that were read and
    /// whose cookie was missing, was invalid, names another node or is due for renewal.
    pub fn cookies_to_set<'s>(
        &self,
        sources: &'s [AffinitySource],
        node: usize,
    ) -> impl Iterator<Item = &'s CookiePolicy> {
        let due = self.cookies.iter().filter(move |cookie| cookie.valid_for != Some(node));
        due.filter_map(|cookie| match sources.get(cookie.source) {
            Some(AffinitySource::Cookie(policy)) => Some(policy),
            _ => None,
        })
    }

    pub(super) fn with_key(mut self, hash: u64, source: HintSource) -> Self {
        self.hints.push(AffinityHint::Key { hash, source });
        self
    }

    pub(super) fn record_pin(&mut self, pin: PinLookup, source: HintSource) {
        match pin {
            PinLookup::Node(node) => self.hints.push(AffinityHint::Pin { node, source }),
            PinLookup::Unknown => self.unknown_pin = self.unknown_pin.or(Some(source)),
            PinLookup::Absent => {}
        }
    }

    /// Remembers that the cookie of this source was looked for, and for which node it is valid.
    pub(super) fn record_cookie(&mut self, source: usize, valid_for: Option<usize>) {
        self.cookies.push(ReadCookie { source, valid_for });
    }
}

/// What a source of pins gave.
pub(super) enum PinLookup {
    /// A node of the pool.
    Node(usize),
    /// A valid pin whose node is not in the pool.
    Unknown,
    /// No pin, or an invalid one.
    Absent,
}

impl From<Option<usize>> for PinLookup {
    fn from(node: Option<usize>) -> Self {
        node.map_or(Self::Unknown, Self::Node)
    }
}
