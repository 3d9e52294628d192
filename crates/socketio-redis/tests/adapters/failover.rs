//! A Redis Cluster that loses connections and masters: every subscription is there again, once, and until then the node
//! says so.

use std::time::Duration;

use socketio_redis::adapter::{Adapter, AdapterState, Room};
use socketio_redis::settings::{AdapterKind, AdapterSettings, SubscriptionMode};
use tokio::time::{interval, timeout};

use crate::servers::{Cluster, Server};
use crate::stand_in::{Node, SOON, broadcast};

/// Enough for rooms on every master.
const ROOMS: usize = 24;

fn room(number: usize) -> String {
    format!("room{number}")
}

/// Two nodes of a fleet; the second has a member in every room.
async fn fleet(cluster: &Cluster, kind: AdapterKind) -> (Node, Node) {
    let one = Node::start("one", &cluster.urls(), AdapterSettings::new(kind.clone())).await;
    let two = Node::start("two", &cluster.urls(), AdapterSettings::new(kind)).await;
    for number in 0..ROOMS {
        two.adapter.create_room(&Room::text(&room(number))).await;
    }
    (one, two)
}

/// Publishes to every room and to all; the other node hears each once.
async fn each_is_heard_once(one: &Node, two: &Node, mark: &str) {
    let all = (0..ROOMS).map(room).chain(["all".to_owned()]);
    let mut expected: Vec<String> = all.map(|room| format!(r#"["{mark}","{room}"]"#)).collect();
    for number in 0..ROOMS {
        let name = room(number);
        one.adapter.send(broadcast(&[mark, &name], &[&name], &[])).await.unwrap();
    }
    one.adapter.send(broadcast(&[mark, "all"], &[], &[])).await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..=ROOMS {
        heard.push(two.next_broadcast().await);
    }
    heard.sort();
    expected.sort();
    assert_eq!(heard, expected);
    // What would come twice has come by the time that a later message has.
    one.adapter.send(broadcast(&["last"], &[], &[])).await.unwrap();
    assert_eq!(two.next_broadcast().await, r#"["last"]"#);
    assert!(two.heard_nothing().await);
}

/// Asks one server.
fn ask<T: redis::FromRedisValue>(server: &Server, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query(&mut server.connect()).unwrap()
}

/// The ids of a server's clients that have a subscription.
fn subscribers(server: &Server) -> Vec<String> {
    let list: String = ask(server, &["CLIENT", "LIST", "TYPE", "pubsub"]);
    list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// Whether the servers count the subscriptions of the two nodes, each once.
fn are_counted<'a>(servers: impl IntoIterator<Item = &'a Server>, kind: &AdapterKind) -> bool {
    let numbers = |server, words: &[&str]| -> usize {
        let told: Vec<redis::Value> = ask(server, words);
        told.iter().filter_map(|value| redis::from_redis_value_ref::<usize>(value).ok()).sum()
    };
    let (mut rooms, mut nodes) = (0, 0);
    for server in servers {
        match kind {
            AdapterKind::Classic => {
                // A pattern covers them, and patterns that two connections share are counted once.
                rooms = ROOMS;
                nodes += numbers(server, &["PUBSUB", "NUMSUB", "socket.io-request#/#"]);
            }
            _ => {
                for number in 0..ROOMS {
                    let channel = format!("socket.io#/#{}#", room(number));
                    rooms += numbers(server, &["PUBSUB", "SHARDNUMSUB", &channel]);
                }
                nodes += numbers(server, &["PUBSUB", "SHARDNUMSUB", "socket.io#/#"]);
            }
        }
    }
    (rooms, nodes) == (ROOMS, 2)
}

/// Returns when it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let mut pause = interval(Duration::from_millis(20));
    let waiting = async {
        while !is_so() {
            pause.tick().await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn are_up(nodes: [&Node; 2]) {
    for node in nodes {
        node.until(|state| *state == AdapterState::Up).await;
    }
}

/// Each master in turn cuts its subscribers, and then all of its clients.
async fn survives_cut_connections(kind: AdapterKind) {
    let cluster = Cluster::start();
    let (one, two) = fleet(&cluster, kind.clone()).await;
    each_is_heard_once(&one, &two, "before").await;
    for (place, master) in cluster.masters.iter().enumerate() {
        for types in [&["pubsub"][..], &["normal", "pubsub"]] {
            let before = subscribers(master);
            for cut in types {
                let _: usize = ask(master, &["CLIENT", "KILL", "TYPE", cut, "SKIPME", "yes"]);
            }
            until("every subscription is there again, once", || {
                let now = subscribers(master);
                before.iter().all(|id| !now.contains(id)) && are_counted(&cluster.masters, &kind)
            })
            .await;
            are_up([&one, &two]).await;
            answers(&one).await;
            each_is_heard_once(&one, &two, &format!("{place} {}", types.join(" "))).await;
        }
    }
    one.bus.close().await;
    two.bus.close().await;
}

/// Returns when commands reach every master again.
async fn answers(node: &Node) {
    let mut pause = interval(Duration::from_millis(20));
    let answered = async {
        for number in 0..ROOMS {
            let nobody = format!("nobody{number}");
            while node.adapter.send(broadcast(&["x"], &[&nobody], &[])).await.is_err() {
                pause.tick().await;
            }
        }
    };
    timeout(SOON, answered).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharded_nodes_hear_each_message_once_after_a_master_has_cut_their_connections() {
    survives_cut_connections(AdapterKind::Sharded(SubscriptionMode::Dynamic)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pubsub_nodes_hear_each_message_once_after_a_node_of_the_cluster_has_cut_their_connections() {
    survives_cut_connections(AdapterKind::Classic).await;
}

/// A master's replica takes its place: because it is told to, or because the master is killed.
async fn survives_failover(is_killed: bool) {
    let mut cluster = Cluster::start();
    let replica = cluster.replica_of(0);
    let kind = AdapterKind::Sharded(SubscriptionMode::Dynamic);
    let (one, two) = fleet(&cluster, kind.clone()).await;
    each_is_heard_once(&one, &two, "before").await;
    if is_killed {
        cluster.masters[0].kill();
        two.until(|state| matches!(state, AdapterState::Unreachable { .. })).await;
    } else {
        ask::<redis::Value>(&replica, &["CLUSTER", "FAILOVER"]);
    }
    until("the replica has taken the master's place", || {
        format!("{:?}", ask::<redis::Value>(&replica, &["ROLE"])).contains("master")
    })
    .await;
    let masters = || cluster.masters[1..].iter().chain([&replica]);
    until("every subscription is at the new master, once", || are_counted(masters(), &kind)).await;
    are_up([&one, &two]).await;
    answers(&one).await;
    each_is_heard_once(&one, &two, "after").await;
    one.bus.close().await;
    two.bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_follow_to_the_replica_that_takes_a_killed_masters_place() {
    survives_failover(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_follow_to_the_replica_that_is_told_to_take_over() {
    survives_failover(false).await;
}
