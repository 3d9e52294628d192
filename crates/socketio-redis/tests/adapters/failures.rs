//! What a node says and counts while Redis is not there, or refuses what is written.

use std::sync::atomic::Ordering::Relaxed;

use socketio_redis::adapter::{Adapter, AdapterState, BroadcastFlags, RequestError, SendError, Target};
use socketio_redis::settings::{AdapterKind, AdapterSettings, StreamsSettings, SubscriptionMode};

use crate::servers::Server;
use crate::stand_in::{Node, broadcast};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_everything_is_refused_at_once_and_counted() {
    let mut server = Server::start();
    for kind in [
        AdapterKind::Classic,
        AdapterKind::Sharded(SubscriptionMode::Dynamic),
        AdapterKind::Streams(StreamsSettings::default()),
    ] {
        let settings = AdapterSettings {
            channel_prefix: format!("{kind:?}").len().to_string().into(),
            ..AdapterSettings::new(kind)
        };
        let one = Node::start("one", &server.url(), settings.clone()).await;
        let two = Node::start("two", &server.url(), settings).await;
        server.kill();
        one.until(|state| matches!(state, AdapterState::Unreachable { .. })).await;
        let refused = one.adapter.send(broadcast(&["lost"], &[], &[])).await;
        assert_eq!(refused, Err(SendError::Unreachable));
        assert_eq!(one.counts.unpublished.load(Relaxed), 1);
        assert_eq!(one.adapter.server_count().await, Err(RequestError::NotSent(SendError::Unreachable)));
        let fetched = one.adapter.fetch_sockets(Target::default(), BroadcastFlags::default()).await;
        assert_eq!(fetched, Err(RequestError::NotSent(SendError::Unreachable)));
        assert!(
            one.adapter
                .broadcast_with_ack(vec!["q".into()], Target::default(), BroadcastFlags::default())
                .await
                .is_err()
        );
        server.restart();
        one.until(|state| *state == AdapterState::Up).await;
        two.until(|state| *state == AdapterState::Up).await;
        one.adapter.send(broadcast(&["again"], &[], &[])).await.unwrap();
        assert_eq!(two.next_broadcast().await, r#"["again"]"#);
        assert_eq!(one.adapter.server_count().await, Ok(2));
        one.bus.close().await;
        two.bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_that_could_not_be_sent_is_counted_once() {
    let mut server = Server::start();
    for kind in [
        AdapterKind::Classic,
        AdapterKind::Sharded(SubscriptionMode::Dynamic),
        AdapterKind::Streams(StreamsSettings::default()),
    ] {
        let node = Node::start("one", &server.url(), AdapterSettings::new(kind)).await;
        server.kill();
        node.until(|state| *state != AdapterState::Up).await;
        let lost = node.adapter.send(broadcast(&["lost"], &["room"], &[])).await;
        assert_eq!(lost, Err(SendError::Unreachable));
        assert_eq!(node.counts.unpublished.load(Relaxed), 1);
        node.bus.close().await;
        server.restart();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_refuses_writes_is_said_as_that() {
    let server = Server::start();
    let node = Node::start(
        "one",
        &server.url(),
        AdapterSettings::new(AdapterKind::Streams(StreamsSettings::default())),
    )
    .await;
    let set = |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut server.connect()).unwrap();
    };
    set("maxmemory", "1");
    assert_eq!(node.adapter.send(broadcast(&["x"], &[], &[])).await, Err(SendError::OutOfMemory));
    let AdapterState::Unreachable { reason: why } = node.bus.state() else {
        panic!("{:?}", node.bus.state())
    };
    assert!(why.contains("refuses writes") && why.contains("OOM"), "{why}");
    set("maxmemory", "0");
    node.adapter.send(broadcast(&["y"], &[], &[])).await.unwrap();
    assert_eq!(node.bus.state(), AdapterState::Up);
    set("min-replicas-to-write", "1");
    assert_eq!(node.adapter.send(broadcast(&["z"], &[], &[])).await, Err(SendError::ReadOnly));
    let AdapterState::Unreachable { reason: why } = node.bus.state() else {
        panic!("{:?}", node.bus.state())
    };
    assert!(why.contains("NOREPLICAS"), "{why}");
    node.bus.close().await;
}
