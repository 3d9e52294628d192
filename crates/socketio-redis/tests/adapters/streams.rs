//! The streams: one order for everybody, reading on after an absence, and clients that come back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socketio_redis::adapter::{
    Adapter, AdapterState, BroadcastFlags, Operation, RestoredSession, Room, Session, Target,
};
use socketio_redis::settings::{AdapterKind, AdapterSettings, StreamsSettings};
use socketio_redis::value::Value;
use tokio::time::timeout;

use crate::servers::{Cluster, Server};
use crate::stand_in::{Node, SOON, broadcast};

fn settings(streams: StreamsSettings) -> AdapterSettings {
    AdapterSettings::new(AdapterKind::Streams(streams))
}

fn session(pid: &str, rooms: &[&str]) -> Session {
    Session {
        sid: "sid".into(),
        pid: pid.into(),
        rooms: rooms.iter().map(|name| Room::text(name)).collect(),
        data: Value::map([("user", Value::from("bob")), ("blob", Value::Binary(vec![7].into()))]),
        user: Some("bob".into()),
        namespace: Some("/".into()),
    }
}

async fn said(node: &Node, text: &str, rooms: &[&str], except: &[&str]) -> String {
    node.adapter.send(broadcast(&[text], rooms, except)).await.unwrap().unwrap().to_string()
}

fn texts(restored: &RestoredSession) -> Vec<String> {
    restored.missed.iter().map(|missed| missed.data[0].as_text().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_all_nodes_see_concurrent_broadcasts_in_one_order() {
    let server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let two = Node::start("two", &server.url(), settings(StreamsSettings::default())).await;
    for number in 0..200 {
        let text = number.to_string();
        drop(one.adapter.send(broadcast(&["one", &text], &[], &[])));
        drop(two.adapter.send(broadcast(&["two", &text], &[], &[])));
    }
    let (mut seen_by_one, mut seen_by_two) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        seen_by_one.push(one.next().await);
        seen_by_two.push(two.next().await);
    }
    assert_eq!(seen_by_one, seen_by_two);
    let offsets: Vec<_> = seen_by_one.iter().map(|(_, offset)| offset.clone().unwrap()).collect();
    assert!(offsets.iter().all(|offset| offset.contains('-')));
    let of_one = |(operation, _): &&(Operation, _)| matches!(operation, Operation::Broadcast { data, .. } if data[0] == Value::from("one"));
    let numbers: Vec<_> = seen_by_one.iter().filter(of_one).collect();
    for (number, (operation, _)) in numbers.iter().enumerate() {
        let Operation::Broadcast { data, .. } = operation else { unreachable!() };
        assert_eq!(data[1], Value::from(number.to_string()));
    }
    assert_eq!(one.counts.delivered.load(Relaxed), 400);
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_reads_on_where_it_was() {
    let server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let two = Node::start("two", &server.url(), settings(StreamsSettings::default())).await;
    said(&one, "before", &[], &[]).await;
    assert_eq!(two.next_broadcast().await, r#"["before"]"#);
    // Every connection of both nodes is cut, and an entry is written before any is back.
    let mut admin = server.connect();
    let mut cut = redis::pipe();
    cut.cmd("CLIENT").arg("KILL").arg("SKIPME").arg("yes").arg("TYPE").arg("normal");
    cut.cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub");
    cut.cmd("XADD").arg("socket.io").arg("*").arg("uid").arg("peer").arg("nsp").arg("/").arg("type").arg("3");
    cut.arg("data").arg(r#"{"packet":{"type":2,"data":["meanwhile"]},"opts":{"rooms":[],"except":[]}}"#);
    cut.exec(&mut admin).unwrap();
    assert_eq!(two.next_broadcast().await, r#"["meanwhile"]"#);
    two.until(|state| *state == AdapterState::Up).await;
    one.until(|state| *state == AdapterState::Up).await;
    said(&one, "after", &[], &[]).await;
    assert_eq!(two.next_broadcast().await, r#"["after"]"#);
    assert_eq!(two.counts.missed.load(Relaxed), 0);
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_before_a_node_could_read_it_is_counted() {
    let server = Server::start();
    let node = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    said(&node, "before", &[], &[]).await;
    node.next().await;
    let mut admin = server.connect();
    let mut cut = redis::pipe();
    cut.cmd("CLIENT").arg("KILL").arg("SKIPME").arg("yes").arg("TYPE").arg("normal");
    for number in 0..10 {
        let data =
            format!(r#"{{"packet":{{"type":2,"data":["{number}"]}},"opts":{{"rooms":[],"except":[]}}}}"#);
        cut.cmd("XADD")
            .arg("socket.io")
            .arg("*")
            .arg("uid")
            .arg("p")
            .arg("nsp")
            .arg("/")
            .arg("type")
            .arg("3");
        cut.arg("data").arg(data);
    }
    cut.cmd("XTRIM").arg("socket.io").arg("MAXLEN").arg(3);
    cut.exec(&mut admin).unwrap();
    for number in 7..10 {
        assert_eq!(node.next_broadcast().await, format!(r#"["{number}"]"#));
    }
    assert_eq!(node.counts.missed.load(Relaxed), 7);
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_redis_lost_the_stream_new_broadcasts_are_read() {
    let mut server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let two = Node::start("two", &server.url(), settings(StreamsSettings::default())).await;
    said(&one, "before", &[], &[]).await;
    assert_eq!(two.next_broadcast().await, r#"["before"]"#);
    server.kill();
    one.until(|state| matches!(state, AdapterState::Unreachable { .. })).await;
    server.restart();
    one.until(|state| *state == AdapterState::Up).await;
    said(&one, "after", &[], &[]).await;
    assert_eq!(two.next_broadcast().await, r#"["after"]"#);
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_as_other_writers_have_them_are_read() {
    let server = Server::start();
    let node = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let mut connection = server.connect();
    let mut add = |fields: &[&str]| {
        redis::cmd("XADD").arg("socket.io").arg("*").arg(fields).exec(&mut connection).unwrap();
    };
    add(&["uid", "p", "nsp", "/", "type", "1"]);
    add(&["uid", "p", "nsp", "/nope", "type", "3", "data", "{}"]);
    add(&["uid", "p", "nsp", "/", "type", "3", "data", "not base64!"]);
    add(&["uid", "p", "nsp", "/", "type", "99", "data", "{}"]);
    add(&["type", "4", "nsp", "/", "uid", "emitter", "data", r#"{"opts":{"rooms":["a"]},"rooms":["b",42]}"#]);
    let target = Target { rooms: vec![Room::text("a")], except: Vec::new() };
    let rooms = vec![Room::text("b"), Room { name: "42".into(), numeric: true }];
    assert_eq!(node.next().await, (Operation::Join { target, rooms }, None));
    assert_eq!(node.counts.unreadable.load(Relaxed), 2);
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_comes_back_on_another_node_with_all_that_it_missed_in_order() {
    let server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let two = Node::start("two", &server.url(), settings(StreamsSettings::default())).await;
    let seen = said(&one, "seen", &[], &[]).await;
    one.adapter.persist_session(session("pid", &["sid", "room"])).await.unwrap();
    let mut expected = Vec::new();
    for (text, rooms, except, is_missed) in [
        ("to all", &[][..], &[][..], true),
        ("to the room", &["x", "room"], &[], true),
        ("to another room", &["x"], &[], false),
        ("to all but the room", &[], &["room"], false),
        ("to the socket", &["sid"], &[], true),
    ] {
        let offset = said(&two, text, rooms, except).await;
        if is_missed {
            expected.push((text.to_owned(), offset));
        }
    }
    let join = Operation::Join { target: Target::default(), rooms: vec![Room::text("y")] };
    two.adapter.send(join).await.unwrap();
    let bytes = vec![Value::from("bytes"), Value::Binary(vec![1, 2].into())];
    let operation = Operation::Broadcast {
        data: bytes.clone(),
        target: Target::default(),
        flags: BroadcastFlags::default(),
    };
    two.adapter.send(operation).await.unwrap();
    // What a node has not read itself yet is delivered live, after what was missed.
    while !matches!(two.next().await.0, Operation::Broadcast { data, .. } if data == bytes) {}
    let restored = two.adapter.restore_session("pid", &seen).await.unwrap();
    assert_eq!(restored.session, session("pid", &["sid", "room"]));
    assert_eq!(restored.missed.last().unwrap().data, bytes);
    let missed: Vec<(String, String)> = texts(&restored)
        .into_iter()
        .zip(restored.missed.iter().map(|missed| missed.offset.to_string()))
        .take(expected.len())
        .collect();
    assert_eq!(missed, expected);
    assert_eq!(restored.missed.len(), expected.len() + 1);
    // One secret, one try.
    assert!(two.adapter.restore_session("pid", &seen).await.is_none());
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_not_taken_up_where_it_must_not_be() {
    let server = Server::start();
    let recovery = Some(Duration::from_secs(120));
    let node = Node::start(
        "one",
        &server.url(),
        settings(StreamsSettings { recovery, ..StreamsSettings::default() }),
    )
    .await;
    let seen = said(&node, "seen", &[], &[]).await;
    let save = async || node.adapter.persist_session(session("pid", &["room"])).await.unwrap();
    let exists =
        || -> bool { redis::cmd("EXISTS").arg("sio:session:pid").query(&mut server.connect()).unwrap() };
    save().await;
    let left: u64 = redis::cmd("PTTL").arg("sio:session:pid").query(&mut server.connect()).unwrap();
    assert!((100_000..=120_000).contains(&left), "{left}");
    assert!(node.adapter.restore_session("unknown", &seen).await.is_none());
    // What is no offset does not even ask.
    for offset in ["", "abc'; DROP", "12", "1-", "-1", "1-2-3", "1 - 2"] {
        assert!(node.adapter.restore_session("pid", offset).await.is_none());
    }
    assert!(exists());
    // An offset that is not in the stream is no claim, and leaves the session to whoever has a right one.
    assert!(node.adapter.restore_session("pid", "1-0").await.is_none());
    assert!(exists());
    redis::cmd("XTRIM").arg("socket.io").arg("MAXLEN").arg(0).exec(&mut server.connect()).unwrap();
    let late = Node::start("late", &server.url(), settings(StreamsSettings::default())).await;
    assert!(late.adapter.restore_session("pid", &seen).await.is_none(), "the stream was trimmed");
    assert!(exists());
    redis::cmd("SET").arg("sio:session:pid").arg("garbage").exec(&mut server.connect()).unwrap();
    let seen = said(&node, "seen", &[], &[]).await;
    assert!(node.adapter.restore_session("pid", &seen).await.is_none());
    late.bus.close().await;
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_missed_events_come_in_several_reads() {
    let server = Server::start();
    let node = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let seen = said(&node, "seen", &[], &[]).await;
    node.adapter.persist_session(session("pid", &["room"])).await.unwrap();
    let sent: Vec<_> =
        (0..2500).map(|number| node.adapter.send(broadcast(&[&number.to_string()], &[], &[]))).collect();
    for answer in sent {
        answer.await.unwrap();
    }
    // All of them are read back, and the first event.
    for _ in 0..2501 {
        node.next().await;
    }
    let restored = timeout(SOON, node.adapter.restore_session("pid", &seen)).await.unwrap().unwrap();
    let expected: Vec<String> = (0..2500).map(|number: u32| number.to_string()).collect();
    assert_eq!(texts(&restored), expected);
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_read_itself_is_there_for_clients_though_the_stream_was_trimmed() {
    let server = Server::start();
    let node = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let seen = said(&node, "seen", &[], &[]).await;
    said(&node, "missed", &[], &[]).await;
    node.next().await;
    node.next().await;
    node.adapter.persist_session(session("pid", &["room"])).await.unwrap();
    redis::cmd("XTRIM").arg("socket.io").arg("MAXLEN").arg(0).exec(&mut server.connect()).unwrap();
    let restored = node.adapter.restore_session("pid", &seen).await.unwrap();
    assert_eq!(texts(&restored), ["missed"]);
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_that_a_client_comes_back_to_one_takes_its_session_and_none_before_it_is_restored() {
    let server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let two = Node::start("two", &server.url(), settings(StreamsSettings::default())).await;
    let seen = said(&one, "seen", &[], &[]).await;
    assert_eq!(two.next_broadcast().await, r#"["seen"]"#);
    one.adapter.persist_session(session("pid", &["room"])).await.unwrap();
    let first = one.adapter.find_session("pid", &seen).await.unwrap();
    let second = two.adapter.find_session("pid", &seen).await.unwrap();
    drop(one.adapter.find_session("pid", &seen).await.unwrap());
    let (first, second) = tokio::join!(first.claim(), second.claim());
    assert_eq!([first.is_some(), second.is_some()].iter().filter(|is_taken| **is_taken).count(), 1);
    assert!(one.adapter.find_session("pid", &seen).await.is_none());
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_that_come_back_to_a_fresh_node_share_what_is_read_for_them() {
    let server = Server::start();
    let one = Node::start("one", &server.url(), settings(StreamsSettings::default())).await;
    let seen = said(&one, "seen", &[], &[]).await;
    let text = "x".repeat(500);
    let sent: Vec<_> = (0..2000).map(|_| one.adapter.send(broadcast(&[&text], &[], &[]))).collect();
    for answer in sent {
        answer.await.unwrap();
    }
    for number in 0..200 {
        one.adapter.persist_session(session(&format!("pid{number}"), &["room"])).await.unwrap();
    }
    one.bus.close().await;
    let fresh = Node::start("fresh", &server.url(), settings(StreamsSettings::default())).await;
    let asked: u64 = reads(&server);
    let pids: Vec<String> = (0..200).map(|number| format!("pid{number}")).collect();
    let back = pids.iter().map(|pid| fresh.adapter.restore_session(pid, &seen));
    let restored = timeout(SOON, futures_util::future::join_all(back)).await.unwrap();
    assert!(restored.iter().all(|one| one.as_ref().is_some_and(|one| one.missed.len() == 2000)));
    assert!(reads(&server) - asked < 50, "{} reads for 200 clients", reads(&server) - asked);
    fresh.bus.close().await;
}

/// How often entries of a range were asked for.
fn reads(server: &Server) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut server.connect()).unwrap();
    let calls = |name| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":calls="));
        line.and_then(|rest| rest.split(',').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    calls("cmdstat_xrange") + calls("cmdstat_xrevrange")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_comes_back_through_a_cluster_whichever_master_keeps_its_session() {
    let cluster = Cluster::start();
    // The stream and the sessions are on different masters, and a namespace may be on a stream that Node.js only writes.
    let streams = StreamsSettings { stream_count: 3, ..StreamsSettings::default() };
    let one = Node::start("one", &cluster.urls(), settings(streams.clone())).await;
    let two = Node::start("two", &cluster.urls(), settings(streams)).await;
    let seen = said(&one, "seen", &[], &[]).await;
    for number in 0..6 {
        one.adapter.persist_session(session(&format!("pid{number}"), &["room"])).await.unwrap();
    }
    said(&two, "missed", &["room"], &[]).await;
    for number in 0..6 {
        let restored = two.adapter.restore_session(&format!("pid{number}"), &seen).await.unwrap();
        assert_eq!(texts(&restored), ["missed"]);
    }
    one.bus.close().await;
    two.bus.close().await;
}
