//! What governs live tunnels goes over before them, and what comes later revokes nothing.

use std::fs;
use std::time::Instant;

use super::stage::{Stage, order, running};
use super::traffic::plain;
use crate::balancer::{DEADLINE, Raw, asked, close_code, node, tunnel};

/// A request that its node has not answered: the old process lives as long.
struct LongPoll {
    client: Raw,
    node: Raw,
}

impl LongPoll {
    fn on(stage: &Stage) -> Self {
        let mut client = stage.balancer.client();
        client.send("GET /poll HTTP/1.1\r\nHost: a\r\n\r\n");
        Self { client, node: asked(&stage.node).0 }
    }

    /// Is answered, by the old process, which ends then.
    fn end(mut self, stage: &Stage) {
        self.node.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
        assert!(self.client.rest().ends_with("well"));
        stage.alone(stage.serving());
    }
}

fn tunnels(stage: &Stage, count: usize) -> Vec<(Raw, Raw)> {
    (0..count).map(|_| tunnel(&stage.balancer, &stage.node)).collect()
}

fn drain(stage: &Stage, over: &str) {
    let told =
        order(&stage.balancer.admin, "/api/pools/chat/nodes/ws1/drain", &format!("{{\"over\":\"{over}\"}}"));
    assert!(told.starts_with("HTTP/1.1 202 ") || told.starts_with("HTTP/1.1 200 "), "{told}");
}

/// A drain tells one client to leave as it begins, and the next ones much later when it is long: that one leaves.
fn first_leaves(tunnels: &mut Vec<(Raw, Raw)>) {
    let end = Instant::now() + DEADLINE;
    let is_told = |(client, _): &(Raw, Raw)| {
        client.0.set_nonblocking(true).unwrap();
        let is_told = client.0.peek(&mut [0]).is_ok();
        client.0.set_nonblocking(false).unwrap();
        is_told
    };
    loop {
        if let Some(at) = tunnels.iter().position(is_told) {
            return drop(tunnels.remove(at));
        }
        assert!(Instant::now() < end, "nobody is told to leave");
        std::thread::yield_now();
    }
}

fn upgrade(stage: &Stage) {
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    assert_eq!(running(&stage.binary).len(), 2, "the old process has a request");
}

/// Returns once `/api/status` says so.
fn says(stage: &Stage, part: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        let status = stage.balancer.admin("/api/status");
        if status.contains(part) {
            return;
        }
        assert!(Instant::now() < end, "no {part:?} in {status}");
        std::thread::yield_now();
    }
}

#[test]
fn the_closes_of_a_drain_go_on_in_the_new_process_whatever_the_old_one_waits_for() {
    let stage = Stage::patient();
    let tunnels = tunnels(&stage, 12);
    let poll = LongPoll::on(&stage);
    drain(&stage, "2s");
    upgrade(&stage);
    for (mut client, _node) in tunnels {
        assert_eq!(close_code(&mut client), 1012);
    }
    assert_eq!(running(&stage.binary).len(), 2, "the old process has a request");
    poll.end(&stage);
}

#[test]
fn an_undrain_that_the_new_process_has_acknowledged_is_not_revoked_by_the_old_ones_last_words() {
    let mut stage = Stage::patient();
    let mut tunnels = tunnels(&stage, 4);
    let poll = LongPoll::on(&stage);
    drain(&stage, "1h");
    first_leaves(&mut tunnels);
    upgrade(&stage);
    says(&stage, "\"drain\":{\"left\":3,\"closed\":1");
    let told = order(&stage.balancer.admin, "/api/pools/chat/nodes/ws1/undrain", "{}");
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("\"state\":\"up\""), "{told}");
    poll.end(&stage);
    stage.balancer.line("the process before this one has ended");
    says(&stage, "\"drain\":null");
    for (client, node) in &mut tunnels {
        node.send(plain(1));
        client.expect(&plain(1));
    }
}

#[test]
fn the_progress_of_a_drain_goes_on_over_an_upgrade_and_who_went_over_has_not_ended() {
    let mut stage = Stage::patient();
    let mut tunnels = tunnels(&stage, 20);
    let poll = LongPoll::on(&stage);
    drain(&stage, "1h");
    first_leaves(&mut tunnels);
    tunnels.truncate(15);
    says(&stage, "\"drain\":{\"left\":15,\"closed\":5");
    upgrade(&stage);
    says(&stage, "\"drain\":{\"left\":15,\"closed\":5");
    poll.end(&stage);
    stage.balancer.line("the process before this one has ended");
    says(&stage, "\"drain\":{\"left\":15,\"closed\":5");
    tunnels.truncate(10);
    says(&stage, "\"drain\":{\"left\":10,\"closed\":10");
}

/// The value of a series, when it is shown.
fn shown(stage: &Stage, series: &str) -> Option<f64> {
    let metrics = stage.balancer.admin("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn the_window_of_a_removed_node_goes_on_over_an_upgrade() {
    let stage = Stage::patient();
    let tunnels = tunnels(&stage, 20);
    let poll = LongPoll::on(&stage);
    let path = stage.balancer.folder.path().join("balancer.yaml");
    let (text, other) = (fs::read_to_string(&path).unwrap(), node());
    let [here, there] = [&stage.node, &other].map(|node| node.local_addr().unwrap().to_string());
    let text = text.replace("id: ws1", "id: ws2").replace(&here, &there);
    fs::write(&path, text.replace("health: null", "health: null, drain: { over: 8s }")).unwrap();
    let told = order(&stage.balancer.admin, "/api/reload", "{}");
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    let series = |what: &str| format!("mainstay_drain_{what}{{pool=\"chat\",node=\"ws1\"}}");
    let end = Instant::now() + DEADLINE;
    while shown(&stage, &series("closed")).is_none_or(|closed| closed < 6.0) {
        assert!(Instant::now() < end, "nobody is closed");
        std::thread::yield_now();
    }
    let before = shown(&stage, &series("deadline_seconds")).unwrap();
    upgrade(&stage);
    let after = shown(&stage, &series("deadline_seconds"));
    // More than two of its eight seconds have passed.
    assert!(after.is_some_and(|after| (after - before).abs() < 1.0), "{before} and then {after:?}");
    assert!(shown(&stage, &series("closed")).unwrap() >= 6.0);
    for (mut client, _node) in tunnels {
        assert_eq!(close_code(&mut client), 1012);
    }
    assert_eq!(running(&stage.binary).len(), 2, "the old process has a request");
    poll.end(&stage);
}
