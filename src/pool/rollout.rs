//! A rolling upgrade of a pool: which release is the new one while its nodes are replaced one after another.
//!
//! A client that has to move is sent to a node of the new release, so that it does not move again when the next node is
//! replaced. The names of releases have no order, so the history says which one is new: the one that a node changed to
//! last (a rollback is such a change), or that came with a new node. Of the releases that the process found at its start
//! none is newer, until a node that is drained or removed shows which one is old. When a node of the new release is
//! drained, no release is preferred any more: that is a rollback.

use std::sync::Arc;

use super::{Node, NodeId};

/// The releases that the nodes of a pool have been seen with.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ReleaseHistory {
    /// The nodes as they were observed last.
    nodes: Vec<ObservedNode>,
    /// The new release; `None` while there is only one, or it is not known.
    newest: Option<Arc<str>>,
    /// The pool was observed before: nodes that are new from now on have joined later.
    has_observed: bool,
}

/// A node as it was observed last.
#[derive(Debug, Clone, PartialEq)]
struct ObservedNode {
    id: NodeId,
    /// The release that it runs; `None` until it has said so.
    release: Option<Arc<str>>,
    /// It was not there at the start of the process.
    joined_later: bool,
}

/// A rollout that is under way, as node selection needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// By the index of the node: whether it runs the new release.
    newest: Box<[bool]>,
    /// Clients of removed nodes still have to move.
    pub has_removed_nodes: bool,
}

impl ReleaseHistory {
    /// The new release, while there is one.
    pub(crate) fn newest(&self) -> Option<&str> {
        self.newest.as_deref()
    }

    /// Observes the nodes of the pool, each with the release that it says it runs, as far as that is known. Gives the
    /// rollout that is under way.
    pub(crate) fn observe(&mut self, nodes: &[(&Node, Option<&str>)]) -> Option<Rollout> {
        for (node, release) in nodes {
            self.observe_node(node, *release);
        }
        let is_there = |seen: &ObservedNode| nodes.iter().any(|(node, _)| node.id == seen.id);
        let (there, gone) = std::mem::take(&mut self.nodes).into_iter().partition(is_there);
        self.nodes = there;
        for seen in gone {
            self.record_leaving(&seen.id, seen.release.as_deref());
        }
        self.has_observed = true;
        if self.other_release(None).is_none_or(|first| self.other_release(Some(&first)).is_none()) {
            // With one release or none there is no rollout.
            self.newest = None;
            return None;
        }
        self.current_rollout(nodes)
    }

    fn observe_node(&mut self, node: &Node, release: Option<&str>) {
        let release = release.map(Arc::<str>::from);
        let is_known = |release: &Arc<str>, nodes: &[ObservedNode]| {
            nodes.iter().any(|seen| seen.release.as_ref() == Some(release))
        };
        let was_there = release.as_ref().is_some_and(|release| is_known(release, &self.nodes));
        let has_observed = self.has_observed;
        let known = self.nodes.iter_mut().find(|seen| seen.id == node.id);
        let (before, joined_later) = match known {
            Some(seen) => {
                let before = seen.release.clone();
                if release.is_some() {
                    seen.release.clone_from(&release);
                }
                (before, seen.joined_later)
            }
            None => {
                let (id, release) = (node.id.clone(), release.clone());
                self.nodes.push(ObservedNode { id, release, joined_later: has_observed });
                (None, has_observed)
            }
        };
        let Some(release) = release.filter(|release| before.as_ref() != Some(release)) else { return };
        // A node that joins with a release that is there already says nothing about which is new.
        let changes_newest = before.is_some() || (joined_later && (!was_there || self.newest.is_none()));
        if changes_newest {
            self.newest = Some(release);
        }
    }

    /// Records that a node is drained or was removed: its release is not the one that clients should be sent to.
    pub(crate) fn record_leaving(&mut self, id: &NodeId, release: Option<&str>) {
        let Some(release) = release else { return };
        let others = self.nodes.iter().filter(|seen| seen.id != *id).filter_map(|seen| seen.release.as_ref());
        let mut others = others.filter(|other| ***other != *release);
        let Some(first) = others.next().cloned() else { return };
        if self.newest.as_deref() == Some(release) {
            self.newest = None;
        } else if self.newest.is_none() && others.all(|other| *other == first) {
            self.newest = Some(first);
        }
    }

    /// A release of the nodes that is not this one.
    fn other_release(&self, release: Option<&Arc<str>>) -> Option<Arc<str>> {
        let mut releases = self.nodes.iter().filter_map(|seen| seen.release.as_ref());
        releases.find(|other| Some(*other) != release).cloned()
    }

    fn current_rollout(&self, nodes: &[(&Node, Option<&str>)]) -> Option<Rollout> {
        let newest = self.newest.as_ref()?;
        let runs_it = |(node, _): &(&Node, Option<&str>)| {
            self.nodes.iter().any(|seen| seen.id == node.id && seen.release.as_ref() == Some(newest))
        };
        let newest: Box<[bool]> = nodes.iter().map(runs_it).collect();
        newest.contains(&true).then_some(Rollout { newest, has_removed_nodes: false })
    }
}

impl Rollout {
    /// Whether the node with this index runs the new release.
    pub(crate) fn is_newest(&self, node: usize) -> bool {
        self.newest.get(node).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        Node {
            id: id.parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
            max_connections: None,
            release: None,
        }
    }

    /// `a:v7 b:v8 c:`, where c has not said what it runs.
    fn note(releases: &mut ReleaseHistory, text: &str) -> Option<Vec<bool>> {
        let nodes: Vec<(Node, Option<&str>)> = text
            .split(' ')
            .map(|node| node.split_once(':').unwrap())
            .map(|(id, release)| (node(id), Some(release).filter(|release| !release.is_empty())))
            .collect();
        let nodes: Vec<(&Node, Option<&str>)> =
            nodes.iter().map(|(node, release)| (node, *release)).collect();
        releases.observe(&nodes).map(|rollout| rollout.newest.to_vec())
    }

    /// What is newest after each of these.
    fn newest(steps: &[&str]) -> Vec<Option<String>> {
        let mut releases = ReleaseHistory::default();
        let step = |text: &&str| {
            note(&mut releases, text);
            releases.newest().map(str::to_owned)
        };
        steps.iter().map(step).collect()
    }

    fn some(release: &str) -> Option<String> {
        Some(release.to_owned())
    }

    #[test]
    fn the_release_that_nodes_change_to_is_the_new_one_until_all_run_it() {
        assert_eq!(
            newest(&["a:v7 b:v7 c:v7", "a:v8 b:v7 c:v7", "a:v8 b:v8 c:v7", "a:v8 b:v8 c:v8"]),
            [None, some("v8"), some("v8"), None]
        );
        // A node that is down says nothing, and is what it was.
        assert_eq!(newest(&["a:v7 b:v7", "a: b:v7", "a:v8 b:v7", "a: b:v7"])[2..], [some("v8"), some("v8")]);
    }

    #[test]
    fn the_release_that_came_with_a_node_is_the_new_one_and_one_more_of_the_old_changes_nothing() {
        assert_eq!(
            newest(&["a:v7 b:v7", "a:v7 b:v7 c:v8", "a:v7 b:v7 c:v8 d:v7", "b:v7 c:v8 d:v7", "c:v8"]),
            [None, some("v8"), some("v8"), some("v8"), None]
        );
        assert_eq!(
            newest(&["a:v7 b:v7", "a:v7 b:v7 c:", "a:v7 b:v7 c:v8"])[2],
            some("v8"),
            "late with its word"
        );
    }

    #[test]
    fn of_those_that_are_found_at_the_start_none_is_new_until_one_leaves() {
        assert_eq!(newest(&["a: b: c:", "a:v7 b: c:", "a:v7 b:v8 c:v8"]), [None, None, None]);
        assert_eq!(newest(&["a:v7 b:v8 c:v8", "b:v8 c:v8"]), [None, None], "nothing is left to be replaced");
        let mut releases = ReleaseHistory::default();
        note(&mut releases, "a:v7 b:v8 c:v7");
        releases.record_leaving(&"a".parse().unwrap(), Some("v7"));
        assert_eq!(note(&mut releases, "a:v7 b:v8 c:v7"), Some(vec![false, true, false]));
    }

    #[test]
    fn going_back_makes_the_old_release_the_new_one() {
        // In place.
        assert_eq!(newest(&["a:v7 b:v7", "a:v8 b:v7", "a:v7 b:v7", "a:v7 b:v7"])[2], None, "all run it");
        assert_eq!(
            newest(&["a:v7 b:v7 c:v7", "a:v8 b:v7 c:v7", "a:v8 b:v8 c:v7", "a:v7 b:v8 c:v7"])[3],
            some("v7")
        );
        // With other nodes: the first that is taken out of the new release says so.
        let steps = ["a:v7 b:v7", "a:v7 b:v7 c:v8 d:v8", "a:v7 b:v7 d:v8", "a:v7 b:v7 d:v8 e:v7"];
        assert_eq!(newest(&steps)[1..], [some("v8"), None, some("v7")]);
    }

    #[test]
    fn a_pool_without_releases_has_no_rollout() {
        let mut releases = ReleaseHistory::default();
        assert_eq!((note(&mut releases, "a: b:"), note(&mut releases, "a: c:")), (None, None));
        assert_eq!(note(&mut releases, "a:v1 c:"), None);
    }
}
