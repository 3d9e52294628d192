//! Node selection: the candidates for a session, in order of preference.
//!
//! The caller dials the first candidate and asks for the next one when that fails. Each candidate is worked out when it
//! is asked for, from the loads of the nodes at that moment, in one or two passes over the nodes and without allocation
//! (up to 128 nodes).
//!
//! The order:
//!
//! 1. The nodes of the pins, in the order of the affinity hints.
//! 2. During a rollout, for a session that has to move: the nodes of the new release, by rule 3.
//! 3. With a key, rendezvous order under the load bound; without one, the balance policy of the pool.
//! 4. The nodes of last resort: down, but good enough according to their probes.
//!
//! Which nodes are candidates:
//!
//! - A node must be up. A session that lives on a draining node still follows its pin there until it is told to move,
//!   and one that lives on an ejected node follows its pin, too.
//! - A full node takes no tunnel. A plain request adds none, so it may follow a pin to a full node.
//! - A node above its share (while the pool is rebalanced) keeps its sessions. A new session goes elsewhere while there
//!   is another node, whatever its pin says. A key without a pin still finds that node: it would hash to it again.

mod balance;
mod candidates;
mod keyed;
mod load;
mod rendezvous;
mod request;
mod rollout_preference;
#[cfg(test)]
mod tests;
mod tried_nodes;

pub use candidates::Candidate;
pub use candidates::Candidates;
pub(crate) use candidates::NoNodeReason;
pub use candidates::SelectOutcome;
pub use candidates::select_candidates;
pub use load::NodeLoad;
pub use request::BalancePolicy;
pub use request::SelectRequest;
