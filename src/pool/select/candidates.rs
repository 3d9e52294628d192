//! The candidates for one session: an iterator that works each of them out when it is asked for.

use super::load::NodeLoad;
use super::request::{BalancePolicy, SelectRequest};
use super::rollout_preference::RolloutPreference;
use super::tried_nodes::TriedNodes;
use crate::affinity::{AffinityHint, HintSource};
use crate::pool::rollout::Rollout;
use crate::pool::{NodeSet, NodeState};

/// How a candidate came to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelectOutcome {
    /// A pin is honoured.
    Kept,
    /// A pin could not be met, or an earlier candidate failed.
    Moved,
    /// A key decides.
    Hashed,
    /// The balance policy decides.
    Placed,
}

impl SelectOutcome {
    /// The value of the label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Moved => "moved",
            Self::Hashed => "hashed",
            Self::Placed => "placed",
        }
    }
}

/// A node to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the node.
    pub node: usize,
    /// The source that decides, or whose pin could not be met; `None` when no source said anything.
    pub source: Option<HintSource>,
    /// How it came to be a candidate.
    pub outcome: SelectOutcome,
}

impl Candidate {
    /// The value of the label `source`.
    pub(crate) fn source_label(&self) -> &'static str {
        self.source.map_or("none", HintSource::as_str)
    }
}

/// Why there is no candidate at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoNodeReason {
    /// No node is up.
    NoneUp,
    /// Some are up, and all of those are at their `max_connections`.
    AllFull,
}

/// The candidates for one session. `loads` gives the load of a node by its index, and is asked at each step.
pub fn select_candidates<'a, L: Fn(usize) -> NodeLoad>(
    nodes: &'a NodeSet,
    request: SelectRequest<'a>,
    loads: L,
) -> Candidates<'a, L> {
    Candidates {
        nodes,
        loads,
        tried: TriedNodes::default(),
        next_hint: 0,
        missed_pin: request.hints.unknown_pin(),
        request,
        has_failed: false,
        is_diverted: false,
        skips_above_share: false,
        allows_last_resort: false,
        preference: None,
    }
}

/// The candidates for one session, best first; see [`select_candidates`].
#[derive(Debug)]
pub struct Candidates<'a, L> {
    pub(super) nodes: &'a NodeSet,
    pub(super) request: SelectRequest<'a>,
    pub(super) loads: L,
    /// The nodes that were given already.
    tried: TriedNodes,
    /// Index of the next affinity hint.
    next_hint: usize,
    /// The first source whose pin could not be met.
    missed_pin: Option<HintSource>,
    /// A candidate was given before, and the caller could not use it.
    has_failed: bool,
    /// A pin was passed over because its node is above its share.
    is_diverted: bool,
    /// Nodes above their share are passed over.
    skips_above_share: bool,
    /// No other node is left: nodes of last resort count as up.
    allows_last_resort: bool,
    /// Set while only nodes of the new release are considered.
    preference: Option<RolloutPreference<'a>>,
}

impl<L: Fn(usize) -> NodeLoad> Iterator for Candidates<'_, L> {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        let candidate =
            self.next_pinned().or_else(|| self.next_on_new_release()).or_else(|| self.next_placed());
        let candidate = candidate.or_else(|| self.next_last_resort())?;
        self.tried.insert(candidate.node);
        self.has_failed = true;
        Some(candidate)
    }
}

impl<L: Fn(usize) -> NodeLoad> Candidates<'_, L> {
    /// Why no node can be a candidate, at this moment; `None` when some could be, even if each was tried.
    pub(crate) fn no_node_reason(&self) -> Option<NoNodeReason> {
        let mut reason = NoNodeReason::NoneUp;
        for node in 0..self.nodes.len() {
            let load = (self.loads)(node);
            if load.state == NodeState::Up {
                if load.live < self.nodes.limits[node].max {
                    return None;
                }
                reason = NoNodeReason::AllFull;
            }
        }
        Some(reason)
    }

    /// The next pin that can be met.
    fn next_pinned(&mut self) -> Option<Candidate> {
        while let Some(AffinityHint::Pin { node, source }) =
            self.request.hints.as_slice().get(self.next_hint).copied()
        {
            self.next_hint += 1;
            let (outcome, decided_by) = if self.has_failed {
                (SelectOutcome::Moved, self.missed_pin.unwrap_or(source))
            } else {
                (SelectOutcome::Kept, source)
            };
            // When this is called again, the caller could not use the pin.
            self.missed_pin = self.missed_pin.or(Some(source));
            if node >= self.nodes.len() || self.tried.contains(node) || !self.can_follow_pin(node) {
                continue;
            }
            if self.request.opens_session && (self.loads)(node).is_above_share {
                self.is_diverted = true;
            } else {
                return Some(Candidate { node, source: Some(decided_by), outcome });
            }
        }
        None
    }

    /// The best node of the new release, for a session that has to move in a rollout.
    fn next_on_new_release(&mut self) -> Option<Candidate> {
        let rollout = self.request.rollout.filter(|rollout| self.must_move(rollout))?;
        self.preference = Some(RolloutPreference::new(rollout, self.nodes, &self.loads));
        let candidate = self.next_placed();
        self.preference = None;
        candidate
    }

    fn must_move(&self, rollout: &Rollout) -> bool {
        let is_drained = |node| (self.loads)(node).state == NodeState::Draining;
        self.missed_pin.is_some() || rollout.has_removed_nodes || (0..self.nodes.len()).any(is_drained)
    }

    /// The best node, those of last resort included.
    fn next_last_resort(&mut self) -> Option<Candidate> {
        self.allows_last_resort = true;
        self.next_placed()
    }

    pub(super) fn is_up(&self, load: NodeLoad) -> bool {
        load.state == NodeState::Up || (self.allows_last_resort && load.is_last_resort)
    }

    /// The best node by key or by the balance policy; nodes above their share last.
    fn next_placed(&mut self) -> Option<Candidate> {
        let is_keyed = matches!(self.request.hints.as_slice().last(), Some(AffinityHint::Key { .. }))
            || self.request.balance == BalancePolicy::ClientIp;
        self.skips_above_share = self.request.opens_session && (self.is_diverted || !is_keyed);
        self.select_best().or_else(|| {
            self.skips_above_share = false;
            self.select_best()
        })
    }

    fn select_best(&self) -> Option<Candidate> {
        let (node, source, outcome) = match self.request.hints.as_slice().last() {
            Some(AffinityHint::Key { hash, source }) => {
                (self.select_by_key(*hash)?, Some(*source), SelectOutcome::Hashed)
            }
            _ => (self.select_by_policy()?, None, SelectOutcome::Placed),
        };
        let has_moved = self.missed_pin.is_some() || self.has_failed;
        let outcome = if has_moved { SelectOutcome::Moved } else { outcome };
        Some(Candidate { node, source: self.missed_pin.or(source), outcome })
    }

    pub(super) fn is_candidate(&self, node: usize) -> bool {
        self.can_take(node, (self.loads)(node))
    }

    /// Whether a node that was not tried can take one more session.
    #[inline]
    pub(super) fn can_take(&self, node: usize, load: NodeLoad) -> bool {
        self.is_up(load)
            && load.live < self.nodes.limits[node].max
            && !(self.skips_above_share && load.is_above_share)
            && !(self.has_failed && self.tried.contains(node))
            && self
                .preference
                .is_none_or(|preference| preference.includes(node, load, self.nodes.limits[node].weight))
    }

    /// Whether a pin to the node can be followed.
    fn can_follow_pin(&self, node: usize) -> bool {
        let load = (self.loads)(node);
        let stays = (load.state == NodeState::Draining && self.request.draining_pin == Some(node))
            || (load.is_last_resort && self.request.is_in_session);
        (load.state == NodeState::Up || stays)
            && (load.live < self.nodes.limits[node].max || !self.request.is_tunnel)
    }
}
