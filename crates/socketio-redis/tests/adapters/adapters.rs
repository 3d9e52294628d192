//! Every operation between two nodes, with each of the adapters, on one server and on a cluster.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socketio_redis::adapter::{
    Adapter, AdapterState, BroadcastFlags, Operation, RemoteAck, RequestError, Room, SendError, Target,
};
use socketio_redis::settings::{AdapterKind, AdapterSettings, StreamsSettings, SubscriptionMode};
use socketio_redis::value::Value;
use tokio::time::timeout;

use crate::servers::{Cluster, Server};
use crate::stand_in::{Node, SOON, broadcast};

fn kinds() -> Vec<AdapterSettings> {
    let sharded_pubsub = StreamsSettings {
        sharded_pubsub: true,
        stream_count: 3,
        only_plaintext: false,
        ..StreamsSettings::default()
    };
    [
        AdapterKind::Classic,
        AdapterKind::Sharded(SubscriptionMode::Dynamic),
        AdapterKind::Sharded(SubscriptionMode::DynamicPrivate),
        AdapterKind::Sharded(SubscriptionMode::Static),
        AdapterKind::Streams(StreamsSettings::default()),
        AdapterKind::Streams(sharded_pubsub),
    ]
    .map(AdapterSettings::new)
    .into()
}

fn room(name: &str) -> Target {
    Target { rooms: vec![Room::text(name)], except: Vec::new() }
}

/// Runs every operation from `one` to `two`.
async fn every_operation(one: &Node, two: &Node) {
    broadcasts(one, two).await;
    orders(one, two).await;
    questions(one, two).await;
}

async fn broadcasts(one: &Node, two: &Node) {
    for name in ["room", "x#y", "abcdefghijklmnopqrst", "42"] {
        two.adapter.create_room(&Room::text(name)).await;
    }
    let bytes = Value::Binary(vec![0, 255].into());
    let flags = BroadcastFlags { volatile: true, compress: Some(false), ..BroadcastFlags::default() };
    let sent = [
        broadcast(&["all", "ü \u{2028}"], &[], &[]),
        broadcast(&["one room"], &["room"], &[]),
        broadcast(&["two rooms"], &["room", "other"], &["except"]),
        broadcast(&["hash"], &["x#y"], &[]),
        broadcast(&["long name"], &["abcdefghijklmnopqrst"], &[]),
        Operation::Broadcast { data: vec!["bytes".into(), bytes], target: room("room"), flags },
        Operation::Broadcast {
            data: vec!["number".into()],
            target: Target { rooms: vec![Room { name: "42".into(), numeric: true }], except: Vec::new() },
            flags: BroadcastFlags::default(),
        },
    ];
    for operation in sent {
        let offset = one.adapter.send(operation.clone()).await.unwrap();
        let (heard, heard_offset) = two.next().await;
        assert_eq!(heard, operation);
        assert_eq!(heard_offset, offset);
        assert_eq!(offset.is_some(), one.bus.delivers_own_broadcasts());
        if one.bus.delivers_own_broadcasts() {
            assert_eq!(one.next().await, (operation, offset));
        }
    }
    assert!(one.heard_nothing().await);
}

async fn orders(one: &Node, two: &Node) {
    let (target, rooms) = (room("room"), vec![Room::text("a"), Room { name: "7".into(), numeric: true }]);
    let sent = [
        Operation::Join { target: target.clone(), rooms: rooms.clone() },
        Operation::Leave { target: target.clone(), rooms },
        Operation::Disconnect { target, close: true },
        Operation::ServerSideEmit { data: vec!["event".into(), Value::Int(1)] },
    ];
    for operation in sent {
        drop(one.adapter.send(operation.clone()));
        assert_eq!(two.next().await, (operation, None));
    }
    assert!(one.heard_nothing().await, "the hub has applied it already");
}

async fn questions(one: &Node, two: &Node) {
    assert_eq!(one.adapter.server_count().await, Ok(2));
    let flags = BroadcastFlags { timeout: Some(Duration::from_secs(5)), ..BroadcastFlags::default() };
    for (target, count) in [(room("room"), 1), (room("nobody"), 0)] {
        let data = vec!["q".into(), Value::Binary(vec![9].into())];
        let mut acks = one.adapter.broadcast_with_ack(data, target, flags.clone()).await.unwrap();
        assert_eq!(acks.servers, 1);
        assert_eq!(acks.replies.recv().await, Some(RemoteAck::Count(count)));
        if count == 1 {
            let Some(RemoteAck::Ack(answer)) = acks.replies.recv().await else { panic!() };
            let answer = answer.as_list().unwrap();
            assert_eq!(answer, [two.local_name(), Value::Binary(vec![9].into())]);
        }
    }
    let sockets = one.adapter.fetch_sockets(Target::default(), BroadcastFlags::default()).await.unwrap();
    assert_eq!(sockets.len(), 1);
    assert_eq!(sockets[0].rooms[1..], [Room::text("room"), Room { name: "42".into(), numeric: true }]);
    assert_eq!(sockets[0].handshake.get("address"), Some(&Value::from("127.0.0.1")));
    assert!(one.adapter.fetch_sockets(room("nobody"), BroadcastFlags::default()).await.unwrap().is_empty());
    assert_eq!(
        one.adapter.server_side_emit_with_ack(vec!["event".into()]).await.unwrap(),
        [two.local_name()]
    );
    let mut rooms = one.adapter.all_rooms().await.unwrap();
    rooms.sort();
    assert!(rooms.contains(&Room::text("room")) && rooms.len() == 3, "{rooms:?}");
}

impl Node {
    fn local_name(&self) -> Value {
        use socketio_redis::adapter::LocalNamespace;
        let rooms = self.local.rooms();
        Value::from(&*rooms[0].name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_goes_both_ways_with_each_adapter() {
    let server = Server::start();
    for (place, mut settings) in kinds().into_iter().enumerate() {
        // One server serves them all, as fleets of different kinds must have different prefixes.
        settings.channel_prefix = format!("fleet{place}").into();
        if let AdapterKind::Streams(streams) = &mut settings.kind {
            streams.name = format!("stream{place}").into();
        }
        let one = Node::start("one", &server.url(), settings.clone()).await;
        let two = Node::start("two", &server.url(), settings.clone()).await;
        every_operation(&one, &two).await;
        every_operation(&two, &one).await;
        two.bus.close().await;
        assert_eq!(one.adapter.server_count().await, Ok(1), "{settings:?}");
        assert_eq!(one.adapter.fetch_sockets(Target::default(), BroadcastFlags::default()).await, Ok(vec![]));
        one.bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_goes_through_a_cluster_of_three_masters() {
    let cluster = Cluster::start();
    for (place, mut settings) in kinds().into_iter().enumerate() {
        settings.channel_prefix = format!("fleet{place}").into();
        if let AdapterKind::Streams(streams) = &mut settings.kind {
            streams.name = format!("stream{place}").into();
        }
        let one = Node::start("one", &cluster.urls(), settings.clone()).await;
        let two = Node::start("two", &cluster.urls(), settings).await;
        every_operation(&one, &two).await;
        one.bus.close().await;
        two.bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_answer_is_counted_and_a_node_that_does_not_is_a_fault() {
    let server = Server::start();
    for kind in [
        AdapterKind::Classic,
        AdapterKind::Sharded(SubscriptionMode::Dynamic),
        AdapterKind::Streams(StreamsSettings::default()),
    ] {
        let is_sharded = matches!(kind, AdapterKind::Sharded(_));
        let mut settings =
            AdapterSettings { request_timeout: Duration::from_millis(300), ..AdapterSettings::new(kind) };
        settings.channel_prefix =
            format!("fleet{is_sharded}{}", matches!(settings.kind, AdapterKind::Classic)).into();
        let one = Node::start("one", &server.url(), settings.clone()).await;
        let two = Node::start("two", &server.url(), settings.clone()).await;
        two.local.is_silent.store(true, Relaxed);
        let mut acks = one
            .adapter
            .broadcast_with_ack(vec!["q".into()], room("room"), BroadcastFlags::default())
            .await
            .unwrap();
        assert_eq!(timeout(SOON, acks.replies.recv()).await.unwrap(), Some(RemoteAck::Count(1)));
        assert!(acks.replies.try_recv().is_err());
        // A subscriber that is no node.
        let channel = match settings.kind {
            AdapterKind::Classic => format!("{}-request#/#", settings.channel_prefix),
            _ => format!("{}#/#", settings.channel_prefix),
        };
        let mut stranger = server.connect();
        let subscribe = if is_sharded { "SSUBSCRIBE" } else { "SUBSCRIBE" };
        stranger.send_packed_command(&redis::cmd(subscribe).arg(channel).get_packed_command()).unwrap();
        stranger.recv_response().unwrap();
        assert_eq!(one.adapter.server_count().await, Ok(3));
        let fault = RequestError::Timeout { received: 1, expected: 2 };
        assert_eq!(
            one.adapter.fetch_sockets(Target::default(), BroadcastFlags::default()).await,
            Err(fault.clone())
        );
        let (said, values) = one.adapter.server_side_emit_with_ack(vec!["event".into()]).await.unwrap_err();
        assert_eq!((said, values), (fault.clone(), vec![Value::from("two")]));
        assert_eq!(fault.to_string(), "timeout reached: only 1 responses received out of 2");
        one.bus.close().await;
        two.bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_kind_on_its_channels_makes_a_node_unfit() {
    let server = Server::start();
    let classic = Node::start("classic", &server.url(), AdapterSettings::new(AdapterKind::Classic)).await;
    let streams = Node::begin(
        "streams",
        &server.url(),
        AdapterSettings::new(AdapterKind::Streams(StreamsSettings::default())),
    );
    let is_unfit = |state: &AdapterState| matches!(state, AdapterState::Incompatible { .. });
    streams.until(is_unfit).await;
    let AdapterState::Incompatible { reason: why } = streams.bus.state() else { panic!() };
    assert!(why.contains("classic adapter") && why.contains("--prefix"), "{why}");
    assert_eq!(streams.adapter.send(broadcast(&["x"], &[], &[])).await, Err(SendError::Unreachable));
    // What a streams adapter of the same prefix publishes makes the classic one stop as well.
    let envelope = "84a47479706509a46461746181a67061636b657492a373736501a3756964b065343663313261356665393961313236a36e7370a12f";
    let envelope: Vec<u8> = (0..envelope.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&envelope[at..at + 2], 16).unwrap())
        .collect();
    redis::cmd("PUBLISH").arg("socket.io#/#").arg(envelope).exec(&mut server.connect()).unwrap();
    classic.until(is_unfit).await;
    classic.bus.close().await;
    streams.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_has_its_channel_while_it_has_a_member_and_a_socket_of_its_own_has_none() {
    let server = Server::start();
    let channels = || -> Vec<String> {
        let mut names: Vec<String> =
            redis::cmd("PUBSUB").arg("SHARDCHANNELS").query(&mut server.connect()).unwrap();
        names.retain(|name| name.contains("room") || name.contains("abc"));
        names.sort();
        names
    };
    let node = Node::start(
        "one",
        &server.url(),
        AdapterSettings::new(AdapterKind::Sharded(SubscriptionMode::Dynamic)),
    )
    .await;
    for name in ["room1", "room2", "abcdefghijklmnopqrst"] {
        node.adapter.create_room(&Room::text(name)).await;
    }
    assert_eq!(channels(), ["socket.io#/#room1#", "socket.io#/#room2#"]);
    // Left and entered again at once: the last word counts.
    node.adapter.delete_room(&Room::text("room1"));
    node.adapter.create_room(&Room::text("room1")).await;
    node.adapter.delete_room(&Room::text("room2"));
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    timeout(SOON, async {
        while channels() != ["socket.io#/#room1#"] {
            pause.tick().await;
        }
    })
    .await
    .unwrap();
    node.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_its_hub_has_dropped_is_not_counted() {
    let server = Server::start();
    for (place, mut settings) in kinds().into_iter().enumerate() {
        settings.channel_prefix = format!("fleet{place}").into();
        let one = Node::start("one", &server.url(), settings.clone()).await;
        let two = Node::start("two", &server.url(), settings).await;
        assert_eq!(one.adapter.server_count().await, Ok(2));
        let Node { adapter, bus, .. } = two;
        drop(adapter);
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        timeout(SOON, async {
            while one.adapter.server_count().await != Ok(1) {
                pause.tick().await;
            }
        })
        .await
        .unwrap();
        one.bus.close().await;
        bus.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_emitter_publishes_reaches_a_node() {
    let server = Server::start();
    let node = Node::start("one", &server.url(), AdapterSettings::new(AdapterKind::Classic)).await;
    node.adapter.create_room(&Room::text("room1")).await;
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapters/wire/emitter-classic.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut connection = server.connect();
    let mut heard = 0;
    for operation in file["operations"].as_array().unwrap() {
        for command in operation["commands"].as_array().into_iter().flatten() {
            let channel = command["channel"].as_str().unwrap_or_default();
            if !channel.contains("#/#") {
                continue;
            }
            let payload = match command["hex"].as_str() {
                Some(hex) => (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect(),
                None => serde_json::to_vec(&command["decoded"]).unwrap(),
            };
            redis::cmd("PUBLISH").arg(channel).arg(payload).exec(&mut connection).unwrap();
            node.next().await;
            heard += 1;
        }
    }
    assert!(heard >= 8, "{heard}");
    assert_eq!(node.counts.unreadable.load(Relaxed), 0);
    node.bus.close().await;
}
