//! Affinity: which node a client belongs to, from the sources of its pool, in order.
//!
//! A source gives a *pin* (this node) or a *key* (hash it over the nodes). Nothing here knows whether a node is up: the
//! caller takes the hints in order and uses the first that can be followed.
//!
//! What a client sends is never trusted. A value that is forged, expired, carried twice, too long or not ASCII where it
//! should be counts as missing, and the next source is read.

mod collect;
pub mod cookie;
pub mod engine_io;
pub mod hash;
mod hint;
mod source;

pub use collect::AffinityRequest;
pub use collect::NodeDirectory;
pub use collect::collect_hints;
pub use hint::AffinityHint;
pub use hint::AffinityHints;
pub use source::AffinitySource;
pub use source::ClientPrefixes;
pub use source::HintSource;
pub(crate) use source::hash_client;
