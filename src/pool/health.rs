//! Whether a node is up: rise and fall of probes, passive ejection, draining, slow start.
//!
//! A state machine that is told what happened and when (since the start of the process), and answers with what
//! changed, so that the caller logs each change once. It probes nothing and keeps no timer: an ejection ends by
//! itself, and `NodeHealth::update`, called at least with each probe, reports that.
//!
//! What ejects a node must be something that no single client can cause: dials that fail, or answers that fail for
//! several clients, of which each counts once. Good probes end an ejection early. They are believed once: a node that
//! is ejected again before it has served anybody stays out for the whole time, whatever its probes say.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::NodeState;

/// How a node's health is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthThresholds {
    /// Good probes in a row that bring a node up.
    pub rise: u32,
    /// Failed probes in a row that bring a node down.
    pub fall: u32,
    /// Failures in a row seen by real traffic that eject a node; 0 turns ejection off. See `FailureEvidence`.
    pub failures: u32,
    /// How long an ejected node is left out at most.
    pub eject: Duration,
    /// The most nodes of a pool that are ejected at a time, in percent of all, 0 to 100.
    pub max_ejected: u8,
    /// How long a returned node's share grows.
    pub slow_start: Duration,
}

/// The share with which a returned node begins.
pub(crate) const MIN_SLOW_START_FACTOR: f32 = 0.1;

/// The clients of failed answers that are remembered; a failure of one of these counts no second time.
const MAX_FAILED_CLIENTS: usize = 8;
/// With fewer clients than this, failed answers eject no node, however few failures the rule asks for.
pub(crate) const MIN_FAILED_CLIENTS: usize = 3;

impl HealthThresholds {
    /// Whether one more of `nodes` may be ejected while `ejected` are. That another one is up is not asked here.
    pub(crate) fn may_eject(&self, nodes: usize, ejected: usize) -> bool {
        let most = nodes.saturating_mul(self.max_ejected.min(100).into()) / 100;
        ejected < most
    }
}

/// Whose word it is that a node failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureEvidence {
    /// The balancer's own: it got no connection. No client can cause that, so each counts.
    Dial,
    /// The answer to a request of this client (its prefix) failed, which the client may have wanted. Each client counts
    /// once in a row of failures, and the row needs [`MIN_FAILED_CLIENTS`] of them.
    Response(IpAddr),
}

/// A failure that real traffic has seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeFailure<'a> {
    /// Whose word it is.
    pub evidence: FailureEvidence,
    /// What failed, in words.
    pub description: &'a str,
}

/// What changed about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthChange {
    /// Its probes brought it up.
    Up,
    /// Its probes brought it down.
    Down,
    /// Real traffic ejected it.
    Ejected,
    /// Its ejection is over and it takes clients again: by the word of its probes, or else because its time is over.
    Readmitted {
        /// The probes have ended it.
        by_probes: bool,
    },
    /// It asks to be drained, or an operator has ordered it.
    Draining,
    /// Neither holds any longer.
    Undrained,
}

impl HealthChange {
    /// The word for logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Readmitted { .. } => "back",
            Self::Draining => "draining",
            Self::Undrained => "undrained",
        }
    }
}

impl fmt::Display for HealthChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The health of one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeHealth {
    thresholds: HealthThresholds,
    /// All the rest.
    state: HealthState,
}

/// What is known of a node: all of its health but the rule, so that another process can go on with it. Times are on the
/// clock that the health was told.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct HealthState {
    /// What the probes say; `None` until the first has answered.
    is_up: Option<bool>,
    /// Probes in a row that speak against `is_up`.
    against: u32,
    /// Failed dials in a row of failures.
    failures: u32,
    /// Failed answers in the same row, each of another client.
    answers: u32,
    /// The last of those clients, at most [`MAX_FAILED_CLIENTS`].
    clients: Vec<IpAddr>,
    /// The end of the running ejection.
    ejected_until: Option<Duration>,
    /// Why it is ejected, in words.
    cause: String,
    /// Good probes in a row since it was ejected.
    good: u32,
    /// Probes have ended its last ejection, and nobody was served since: they do not end the next one.
    is_doubted: bool,
    /// Whether the node itself asks to be drained.
    asks: bool,
    /// Whether an operator has ordered it to be drained.
    is_ordered: bool,
    /// Since when its share grows; `None` is the whole share.
    grows_since: Option<Duration>,
    /// Whether the first time that it is up is a return: so for a node that joins a running pool.
    first_is_return: bool,
}

impl NodeHealth {
    /// What is known.
    pub(crate) fn snapshot(&self) -> HealthState {
        self.state.clone()
    }

    /// Goes on from what another process knew. What only this one knows, because the other had not asked, stays.
    pub(crate) fn restore(&mut self, memory: &HealthState) {
        self.state = HealthState { is_up: memory.is_up.or(self.state.is_up), ..memory.clone() };
    }

    /// A node at the start of the process: not up until its first probe, which decides at once, and with its
    /// whole share then, since all start alike.
    pub(crate) fn new(thresholds: HealthThresholds) -> Self {
        Self { thresholds, state: HealthState::default() }
    }

    /// A node that joins a running pool: as [`NodeHealth::new`], but its share grows from the first time it is up.
    pub(crate) fn new_joining(thresholds: HealthThresholds) -> Self {
        Self { thresholds, state: HealthState { first_is_return: true, ..HealthState::default() } }
    }

    /// A node that is not probed: up from the start, and judged by real traffic alone.
    pub(crate) fn new_unprobed(thresholds: HealthThresholds) -> Self {
        Self { thresholds, state: HealthState { is_up: Some(true), ..HealthState::default() } }
    }

    /// Judges by another rule from now on, as a reload wants; what is known of the node stays.
    pub(crate) fn set_thresholds(&mut self, rule: HealthThresholds) {
        self.thresholds = rule;
    }

    /// A probe answered.
    pub(crate) fn record_probe(&mut self, ok: bool, now: Duration) -> Option<HealthChange> {
        let ended = self.update(now);
        self.state.good = if ok { self.state.good.saturating_add(1) } else { 0 };
        let needed = match (self.state.is_up, ok) {
            (None, _) => 1,
            (Some(up), ok) if up == ok => {
                self.state.against = 0;
                return self.readmit_by_probes(now).or(ended);
            }
            (Some(_), true) => self.thresholds.rise,
            (Some(_), false) => self.thresholds.fall,
        };
        self.state.against = self.state.against.saturating_add(1);
        if self.state.against < needed.max(1) {
            return ended;
        }
        self.state.against = 0;
        let is_first = self.state.is_up.is_none();
        self.state.is_up = Some(ok);
        // The node that was ejected is no more: what its probes say now holds.
        self.reset_failures();
        self.state.ejected_until = None;
        self.state.is_doubted = false;
        if ok && (!is_first || self.state.first_is_return) {
            self.state.grows_since = Some(now);
        }
        Some(if ok { HealthChange::Up } else { HealthChange::Down })
    }

    /// Ends the ejection of a node whose probes have been good often enough since, if their word is good for that.
    fn readmit_by_probes(&mut self, now: Duration) -> Option<HealthChange> {
        let is_enough = self.state.good >= self.thresholds.rise.max(1) && !self.state.is_doubted;
        self.state.ejected_until.filter(|_| is_enough)?;
        self.state.is_doubted = true;
        self.end_ejection(now);
        (self.node_state(now) == NodeState::Up).then_some(HealthChange::Readmitted { by_probes: true })
    }

    /// Real traffic failed. `may_eject` says that another node is up and that no more are ejected than may be: a bad
    /// node is better than none.
    pub(crate) fn record_failure(
        &mut self,
        failure: &NodeFailure<'_>,
        now: Duration,
        may_eject: bool,
    ) -> Option<HealthChange> {
        let ended = self.update(now);
        if !self.count_failure(failure.evidence) {
            return ended;
        }
        let (dials, answers) = (self.state.failures, self.state.answers);
        let row = dials.saturating_add(answers);
        let (is_enough, is_off) = (row >= self.thresholds.failures, self.thresholds.failures == 0);
        let is_sure = dials >= self.thresholds.failures || self.state.clients.len() >= MIN_FAILED_CLIENTS;
        if is_off || !is_enough || !is_sure || !may_eject || self.node_state(now) != NodeState::Up {
            return ended;
        }
        self.reset_failures();
        self.state.good = 0;
        self.state.cause = format!("{row} failures in a row, the last: {}", failure.description);
        self.state.ejected_until = Some(now.saturating_add(self.thresholds.eject));
        Some(HealthChange::Ejected)
    }

    /// Counts a failure, unless its client has been counted.
    fn count_failure(&mut self, evidence: FailureEvidence) -> bool {
        let known = &mut self.state;
        match evidence {
            FailureEvidence::Dial => known.failures = known.failures.saturating_add(1),
            FailureEvidence::Response(client) if known.clients.contains(&client) => return false,
            FailureEvidence::Response(client) => {
                if known.clients.len() >= MAX_FAILED_CLIENTS {
                    known.clients.remove(0);
                }
                known.clients.push(client);
                known.answers = known.answers.saturating_add(1);
            }
        }
        true
    }

    fn reset_failures(&mut self) {
        self.state.failures = 0;
        self.state.answers = 0;
        self.state.clients.clear();
    }

    /// Real traffic succeeded.
    pub(crate) fn record_success(&mut self) {
        self.reset_failures();
        self.state.is_doubted = false;
    }

    /// The node asks to be drained, or no longer does.
    pub(crate) fn set_drain_requested(&mut self, asks: bool, now: Duration) -> Option<HealthChange> {
        let before = self.is_draining();
        self.state.asks = asks;
        self.drain_changed(before, now)
    }

    /// An operator has ordered the node to be drained, or has taken that back. What the node itself says stands
    /// beside it.
    pub(crate) fn set_drain_ordered(&mut self, is_ordered: bool, now: Duration) -> Option<HealthChange> {
        let before = self.is_draining();
        self.state.is_ordered = is_ordered;
        self.drain_changed(before, now)
    }

    fn drain_changed(&mut self, before: bool, now: Duration) -> Option<HealthChange> {
        if before == self.is_draining() {
            return None;
        }
        if before {
            self.state.grows_since = Some(now);
        }
        Some(if before { HealthChange::Undrained } else { HealthChange::Draining })
    }

    /// Whether anybody wants the node to be drained, well or not.
    pub(crate) fn is_draining(&self) -> bool {
        self.state.asks || self.state.is_ordered
    }

    /// Whether the node itself asks to be drained.
    pub(crate) fn is_drain_requested(&self) -> bool {
        self.state.asks
    }

    /// Whether an operator has ordered the node to be drained.
    pub(crate) fn is_drain_ordered(&self) -> bool {
        self.state.is_ordered
    }

    /// The node is not probed any more: what its probes said last would stay for ever. An operator's order stays.
    pub(crate) fn stop_probing(&mut self, rule: HealthThresholds) {
        let state = HealthState { is_ordered: self.state.is_ordered, ..Self::new_unprobed(rule).state };
        *self = Self { thresholds: rule, state };
    }

    /// Ends an ejection whose time is over; [`HealthChange::Readmitted`] when the node takes clients again by that.
    pub(crate) fn update(&mut self, now: Duration) -> Option<HealthChange> {
        let until = self.state.ejected_until.filter(|until| *until <= now)?;
        self.end_ejection(until);
        (self.node_state(now) == NodeState::Up).then_some(HealthChange::Readmitted { by_probes: false })
    }

    fn end_ejection(&mut self, at: Duration) {
        self.state.ejected_until = None;
        self.reset_failures();
        self.state.grows_since = Some(at);
    }

    /// The running ejection: its end at the latest, and why it is.
    pub(crate) fn ejection(&self, now: Duration) -> Option<(Duration, &str)> {
        let until = self.state.ejected_until.filter(|until| now < *until)?;
        Some((until, &self.state.cause))
    }

    /// Whether the node is not up, and its probes say that it may serve all the same: it is ejected, or it is down and
    /// its last probe was good. It is better than no node at all.
    pub(crate) fn is_last_resort(&self, now: Duration) -> bool {
        let may_serve = match self.state.is_up {
            Some(true) => self.ejection(now).is_some(),
            Some(false) => self.state.against > 0,
            None => false,
        };
        may_serve && !self.is_draining()
    }

    /// What the node is good for at `now`. Never [`NodeState::Removed`], which is not for the node to say.
    pub(crate) fn node_state(&self, now: Duration) -> NodeState {
        let is_ejected = self.state.ejected_until.is_some_and(|until| now < until);
        match self.state.is_up {
            Some(true) if self.is_draining() => NodeState::Draining,
            Some(true) if !is_ejected => NodeState::Up,
            _ => NodeState::Down,
        }
    }

    /// How much of its weight counts at `now`: from [`MIN_SLOW_START_FACTOR`] to 1 over `slow_start`.
    pub(crate) fn slow_start_factor(&self, now: Duration) -> f32 {
        let since = match self.state.ejected_until {
            Some(until) if until <= now => Some(until),
            _ => self.state.grows_since,
        };
        let (Some(since), over) = (since, self.thresholds.slow_start.as_secs_f32()) else { return 1.0 };
        if over <= 0.0 {
            return 1.0;
        }
        let done = (now.saturating_sub(since).as_secs_f32() / over).min(1.0);
        MIN_SLOW_START_FACTOR + (1.0 - MIN_SLOW_START_FACTOR) * done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: HealthThresholds = HealthThresholds {
        rise: 2,
        fall: 3,
        failures: 3,
        eject: Duration::from_secs(30),
        max_ejected: 50,
        slow_start: Duration::from_secs(10),
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn up() -> NodeHealth {
        let mut health = NodeHealth::new(RULE);
        assert_eq!(health.record_probe(true, s(0)), Some(HealthChange::Up));
        health
    }

    fn probe(health: &mut NodeHealth, answers: &[bool], now: u64) -> Vec<Option<HealthChange>> {
        answers.iter().map(|ok| health.record_probe(*ok, s(now))).collect()
    }

    const DIAL: NodeFailure<'_> =
        NodeFailure { evidence: FailureEvidence::Dial, description: "connection refused" };
    const BACK: HealthChange = HealthChange::Readmitted { by_probes: false };
    const BACK_BY_PROBES: HealthChange = HealthChange::Readmitted { by_probes: true };

    fn fail(health: &mut NodeHealth, times: usize, now: u64) -> Vec<Option<HealthChange>> {
        (0..times).map(|_| health.record_failure(&DIAL, s(now), true)).collect()
    }

    /// The answers to these clients fail, one after the other.
    fn answers_fail(health: &mut NodeHealth, clients: &[u8], now: u64) -> Vec<Option<HealthChange>> {
        let of = |client: &u8| FailureEvidence::Response([192, 0, 2, *client].into());
        let fail = |evidence| {
            health.record_failure(&NodeFailure { evidence, description: "no answer" }, s(now), true)
        };
        clients.iter().map(of).map(fail).collect()
    }

    #[test]
    fn the_first_probe_decides_at_once() {
        let mut health = NodeHealth::new(RULE);
        assert_eq!(health.node_state(s(0)), NodeState::Down);
        assert_eq!(health.clone().record_probe(true, s(0)), Some(HealthChange::Up));
        assert_eq!(health.record_probe(false, s(0)), Some(HealthChange::Down));
        assert_eq!(health.node_state(s(0)), NodeState::Down);
    }

    #[test]
    fn a_node_falls_after_failed_probes_in_a_row_and_rises_after_good_ones() {
        let mut health = up();
        assert_eq!(probe(&mut health, &[false, false, true, false, false], 1), [None; 5]);
        assert_eq!(health.node_state(s(1)), NodeState::Up);
        assert_eq!(probe(&mut health, &[false, false], 1), [Some(HealthChange::Down), None]);
        assert_eq!(health.node_state(s(1)), NodeState::Down);
        assert_eq!(
            probe(&mut health, &[true, false, true, true, true], 2),
            [None, None, None, Some(HealthChange::Up), None]
        );
        assert_eq!(health.node_state(s(2)), NodeState::Up);
    }

    #[test]
    fn a_rule_of_zero_counts_as_one() {
        let mut health = NodeHealth::new(HealthThresholds { rise: 0, fall: 0, ..RULE });
        let changes = probe(&mut health, &[true, false, true], 0);
        assert_eq!(changes, [Some(HealthChange::Up), Some(HealthChange::Down), Some(HealthChange::Up)]);
    }

    #[test]
    fn failures_in_a_row_eject_a_node_for_a_while() {
        let mut health = up();
        assert_eq!(fail(&mut health, 2, 5), [None, None]);
        health.record_success();
        assert_eq!(fail(&mut health, 3, 5), [None, None, Some(HealthChange::Ejected)]);
        assert_eq!(health.node_state(s(5)), NodeState::Down);
        assert_eq!(health.ejection(s(6)), Some((s(35), "3 failures in a row, the last: connection refused")));
        assert_eq!(fail(&mut health, 9, 6), [None; 9], "dials under way fail late and change nothing");
        assert_eq!(health.node_state(s(34)), NodeState::Down);
        assert_eq!((health.node_state(s(35)), health.ejection(s(35))), (NodeState::Up, None));
        assert_eq!((health.update(s(35)), health.update(s(35))), (Some(BACK), None));
        assert_eq!(fail(&mut health, 3, 36), [None, None, Some(HealthChange::Ejected)]);
    }

    #[test]
    fn a_good_round_of_probes_ends_an_ejection() {
        let mut health = up();
        probe(&mut health, &[true; 9], 1);
        fail(&mut health, 3, 5);
        assert_eq!(probe(&mut health, &[true, false, true], 6), [None; 3], "in a row, and since then");
        assert_eq!(probe(&mut health, &[true], 8), [Some(BACK_BY_PROBES)]);
        assert_eq!(
            (health.node_state(s(8)), health.slow_start_factor(s(8))),
            (NodeState::Up, MIN_SLOW_START_FACTOR)
        );
    }

    #[test]
    fn a_node_that_comes_up_again_is_not_left_out_for_what_was_before() {
        let mut health = up();
        fail(&mut health, 3, 5);
        assert_eq!(probe(&mut health, &[false; 3], 6)[2], Some(HealthChange::Down));
        assert_eq!(health.ejection(s(6)), None, "its probes have the word now");
        assert_eq!(probe(&mut health, &[true; 2], 8), [None, Some(HealthChange::Up)]);
        assert_eq!(health.node_state(s(8)), NodeState::Up);
        assert_eq!(fail(&mut health, 2, 9), [None; 2], "and its failures are counted anew");
    }

    #[test]
    fn probes_that_were_wrong_about_a_node_do_not_end_its_next_ejection_until_somebody_is_served() {
        let mut health = up();
        fail(&mut health, 3, 5);
        assert_eq!(probe(&mut health, &[true; 2], 6)[1], Some(BACK_BY_PROBES));
        fail(&mut health, 3, 7);
        assert_eq!(probe(&mut health, &[true; 9], 8), [None; 9]);
        assert_eq!((health.node_state(s(36)), health.node_state(s(37))), (NodeState::Down, NodeState::Up));
        fail(&mut health, 3, 38);
        assert_eq!(probe(&mut health, &[true; 9], 39), [None; 9]);
        health.update(s(68));
        health.record_success();
        fail(&mut health, 3, 69);
        assert_eq!(probe(&mut health, &[true; 2], 70)[1], Some(BACK_BY_PROBES));
    }

    #[test]
    fn no_one_client_ejects_a_node_and_several_do() {
        let mut health = up();
        assert!(answers_fail(&mut health, &[1; 1000], 1).iter().all(Option::is_none));
        let two = [1, 2].repeat(500);
        assert!(answers_fail(&mut health, &two, 1).iter().all(Option::is_none));
        assert_eq!(answers_fail(&mut health, &[3], 1), [Some(HealthChange::Ejected)]);

        let mut hasty = NodeHealth::new_unprobed(HealthThresholds { failures: 1, ..RULE });
        assert_eq!(answers_fail(&mut hasty, &[1, 1, 2, 2], 1), [None; 4], "however few are asked for");
        assert_eq!(answers_fail(&mut hasty, &[3], 1), [Some(HealthChange::Ejected)]);

        let mut served = up();
        answers_fail(&mut served, &[1, 2], 1);
        served.record_success();
        assert_eq!(answers_fail(&mut served, &[3, 4], 1), [None; 2], "in a row");
    }

    #[test]
    fn the_memory_of_clients_is_bounded_and_those_in_it_count_once() {
        let mut health = NodeHealth::new_unprobed(HealthThresholds { failures: 1000, ..RULE });
        let around = (0..8).collect::<Vec<u8>>().repeat(1000);
        assert!(answers_fail(&mut health, &around, 1).iter().all(Option::is_none));
        assert_eq!((health.state.clients.len(), health.state.answers), (MAX_FAILED_CLIENTS, 8));
        let all = (0..=255).collect::<Vec<u8>>().repeat(4);
        assert!(answers_fail(&mut health, &all, 1).contains(&Some(HealthChange::Ejected)));
        assert!(health.state.clients.len() <= MAX_FAILED_CLIENTS);
    }

    #[test]
    fn a_client_adds_nothing_to_failed_dials() {
        let mut health = up();
        fail(&mut health, 2, 1);
        assert_eq!(answers_fail(&mut health, &[1; 9], 1), [None; 9]);
        assert_eq!(fail(&mut health, 1, 1), [Some(HealthChange::Ejected)]);
    }

    #[test]
    fn no_more_nodes_are_ejected_than_may_be() {
        let most = |max_ejected, nodes| {
            let rule = HealthThresholds { max_ejected, ..RULE };
            (0..=nodes).find(|ejected| !rule.may_eject(nodes, *ejected)).unwrap()
        };
        assert_eq!([1, 2, 3, 4, 9].map(|nodes| most(50, nodes)), [0, 1, 1, 2, 4]);
        assert_eq!((most(0, 100), most(10, 9), most(10, 10), most(100, 3), most(255, 3)), (0, 0, 1, 3, 3));
    }

    #[test]
    fn an_ejected_node_and_one_whose_last_probe_was_good_are_a_reserve() {
        let mut health = NodeHealth::new(RULE);
        assert!(!health.is_last_resort(s(0)), "nobody knows it");
        health.record_probe(false, s(0));
        assert!(!health.is_last_resort(s(0)));
        health.record_probe(true, s(1));
        assert_eq!((health.node_state(s(1)), health.is_last_resort(s(1))), (NodeState::Down, true));
        health.record_probe(true, s(2));
        assert!(!health.is_last_resort(s(2)), "it is up");
        fail(&mut health, 3, 3);
        assert!(health.is_last_resort(s(3)));
        health.set_drain_requested(true, s(3));
        assert!(!health.is_last_resort(s(3)), "it asked to be left alone");
    }

    #[test]
    fn a_probe_reports_the_end_of_an_ejection_too() {
        let mut health = up();
        fail(&mut health, 3, 0);
        assert_eq!(health.record_probe(true, s(30)), Some(BACK));
        fail(&mut health, 3, 31);
        assert_eq!(health.record_failure(&DIAL, s(61), true), Some(BACK));
    }

    #[test]
    fn the_last_usable_node_is_not_ejected() {
        let mut health = up();
        assert_eq!((0..9).map(|_| health.record_failure(&DIAL, s(0), false)).collect::<Vec<_>>(), [None; 9]);
        assert_eq!(health.node_state(s(0)), NodeState::Up);
        assert_eq!(
            health.record_failure(&DIAL, s(1), true),
            Some(HealthChange::Ejected),
            "once another is up"
        );
    }

    #[test]
    fn no_number_of_failures_ejects_when_ejection_is_off() {
        let mut health = NodeHealth::new_unprobed(HealthThresholds { failures: 0, ..RULE });
        assert_eq!(health.node_state(s(0)), NodeState::Up);
        assert_eq!(fail(&mut health, 100, 0), [None; 100]);
    }

    #[test]
    fn a_node_that_fell_while_it_was_ejected_stays_down() {
        let mut health = up();
        fail(&mut health, 3, 0);
        assert_eq!(probe(&mut health, &[false; 3], 1), [None, None, Some(HealthChange::Down)]);
        assert_eq!((health.update(s(40)), health.node_state(s(40))), (None, NodeState::Down));
        assert_eq!(probe(&mut health, &[true; 2], 41), [None, Some(HealthChange::Up)]);
    }

    #[test]
    fn a_node_drains_when_it_asks_to_and_only_while_it_is_well() {
        let mut health = up();
        assert_eq!(health.set_drain_requested(true, s(1)), Some(HealthChange::Draining));
        assert_eq!(health.set_drain_requested(true, s(1)), None);
        assert_eq!(health.node_state(s(1)), NodeState::Draining);
        assert_eq!(fail(&mut health, 5, 1), [None; 5], "it is no candidate and so not ejected");
        probe(&mut health, &[false; 3], 2);
        assert_eq!(health.node_state(s(2)), NodeState::Down);
        probe(&mut health, &[true; 2], 3);
        assert_eq!(health.node_state(s(3)), NodeState::Draining);
        assert_eq!(health.set_drain_requested(false, s(4)), Some(HealthChange::Undrained));
        assert_eq!(health.node_state(s(4)), NodeState::Up);
    }

    #[test]
    fn a_node_is_drained_while_it_asks_or_an_operator_has_ordered_it() {
        let mut health = up();
        assert_eq!(health.set_drain_ordered(true, s(1)), Some(HealthChange::Draining));
        assert_eq!(
            (health.set_drain_requested(true, s(1)), health.set_drain_requested(false, s(1))),
            (None, None)
        );
        assert_eq!((health.node_state(s(1)), health.is_drain_ordered()), (NodeState::Draining, true));
        assert_eq!(health.set_drain_requested(true, s(2)), None);
        assert_eq!((health.set_drain_ordered(false, s(2)), health.is_drain_requested()), (None, true));
        assert_eq!(health.set_drain_requested(false, s(3)), Some(HealthChange::Undrained));
        assert_eq!(health.node_state(s(3)), NodeState::Up);
        health.set_drain_requested(true, s(4));
        health.set_drain_ordered(true, s(4));
        health.stop_probing(RULE);
        assert_eq!((health.is_drain_requested(), health.is_drain_ordered()), (false, true));
    }

    #[test]
    fn the_share_of_a_returned_node_grows_and_the_first_start_is_whole() {
        let mut health = up();
        assert_eq!(health.slow_start_factor(s(0)), 1.0);
        probe(&mut health, &[false; 3], 1);
        probe(&mut health, &[true; 2], 100);
        assert_eq!(health.slow_start_factor(s(100)), MIN_SLOW_START_FACTOR);
        assert!((health.slow_start_factor(s(105)) - 0.55).abs() < 1e-6);
        assert_eq!((health.slow_start_factor(s(110)), health.slow_start_factor(s(1000))), (1.0, 1.0));
        assert_eq!(
            health.slow_start_factor(s(0)),
            MIN_SLOW_START_FACTOR,
            "a clock that is read late does no harm"
        );
    }

    #[test]
    fn the_share_grows_after_an_ejection_after_a_drain_and_for_a_node_that_joins() {
        let mut ejected = up();
        fail(&mut ejected, 3, 0);
        assert!((ejected.slow_start_factor(s(35)) - 0.55).abs() < 1e-6, "before anyone ticks");
        ejected.update(s(36));
        assert!((ejected.slow_start_factor(s(35)) - 0.55).abs() < 1e-6);

        let mut drained = up();
        drained.set_drain_requested(true, s(1));
        drained.set_drain_requested(false, s(50));
        assert_eq!(drained.slow_start_factor(s(50)), MIN_SLOW_START_FACTOR);

        let mut joining = NodeHealth::new_joining(RULE);
        joining.record_probe(true, s(7));
        assert_eq!(joining.slow_start_factor(s(7)), MIN_SLOW_START_FACTOR);

        let mut at_once = NodeHealth::new_joining(HealthThresholds { slow_start: Duration::ZERO, ..RULE });
        at_once.record_probe(true, s(7));
        assert_eq!(at_once.slow_start_factor(s(7)), 1.0);
    }

    #[test]
    fn a_reloaded_rule_keeps_what_has_probe_result() {
        let mut health = up();
        probe(&mut health, &[false; 2], 1);
        health.set_thresholds(HealthThresholds { fall: 5, ..RULE });
        assert_eq!(probe(&mut health, &[false; 3], 1), [None, None, Some(HealthChange::Down)]);
    }

    #[test]
    fn another_process_goes_on_from_what_was_known_and_what_only_it_knows_stays() {
        let mut before = up();
        fail(&mut before, 3, 5);
        before.set_drain_ordered(true, s(6));
        let mut next = NodeHealth::new(HealthThresholds { fall: 9, ..RULE });
        next.restore(&before.snapshot());
        assert_eq!(next, NodeHealth { thresholds: HealthThresholds { fall: 9, ..RULE }, ..before });
        let mut asked = up();
        asked.restore(&NodeHealth::new(RULE).snapshot());
        assert_eq!(asked.node_state(s(0)), NodeState::Up, "the other had not asked");
    }

    proptest! {
        #[test]
        fn every_change_of_state_is_reported(events in proptest::collection::vec((0_u8..8, 0_u64..20), 0..200)) {
            let mut health = NodeHealth::new(RULE);
            let mut now = 0;
            for (event, later) in events {
                now += later;
                health.update(s(now));
                let before = health.node_state(s(now));
                let change = match event {
                    6 | 7 => health.set_drain_ordered(event == 6, s(now)),
                    0 | 1 => health.record_probe(event == 0, s(now)),
                    2 => health.record_failure(&DIAL, s(now), true),
                    3 => { health.record_success(); None }
                    _ => health.set_drain_requested(event == 4, s(now)),
                };
                prop_assert!(change.is_some() || health.node_state(s(now)) == before);
                prop_assert!((MIN_SLOW_START_FACTOR..=1.0).contains(&health.slow_start_factor(s(now))));
            }
        }
    }
}
