//! The connection to Redis, which comes back whatever happens to it.

use std::sync::Arc;
use std::time::Duration;

use socketio_redis::client::{
    ClientState, CommandError, Listener, ReceivedMessage, RedisAddress, RedisClient, Subscription,
    SubscriptionKind,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::servers::{Cluster, Sentinel, Server, free_ports};

const MAX_WAIT: Duration = Duration::from_secs(2);

/// Longer than anything takes that goes well.
const SOON: Duration = Duration::from_secs(20);

fn ear() -> (Listener, UnboundedReceiver<ReceivedMessage>) {
    let (sender, receiver) = unbounded_channel();
    (Arc::new(move |heard| drop(sender.send(heard))), receiver)
}

async fn hear(
    redis: &RedisClient,
    kind: SubscriptionKind,
    channel: &str,
) -> UnboundedReceiver<ReceivedMessage> {
    let (listener, receiver) = ear();
    let subscription = Subscription { kind, channel: channel.into() };
    redis.subscribe(subscription.clone(), listener);
    redis.wait_subscribed(subscription).await;
    receiver
}

async fn until(redis: &RedisClient, wanted: impl Fn(&ClientState) -> bool) -> ClientState {
    let mut watch = redis.watch();
    timeout(SOON, watch.wait_for(wanted)).await.expect("the state came").unwrap().clone()
}

async fn up(url: &str) -> Arc<RedisClient> {
    let redis = RedisClient::start(RedisAddress::parse(url, false).unwrap(), MAX_WAIT);
    until(&redis, |state| *state == ClientState::Up).await;
    redis
}

async fn next(heard: &mut UnboundedReceiver<ReceivedMessage>) -> (String, String) {
    let heard = timeout(SOON, heard.recv()).await.expect("something was heard").unwrap();
    (heard.channel, String::from_utf8(heard.payload).unwrap())
}

fn publish(command: &str, channel: &str, payload: &str) -> redis::Cmd {
    redis::cmd(command).arg(channel).arg(payload).to_owned()
}

#[tokio::test]
async fn what_is_wanted_is_heard_in_each_of_the_three_ways() {
    let server = Server::start();
    let redis = up(&server.url()).await;
    let mut channel = hear(&redis, SubscriptionKind::Channel, "a").await;
    let mut pattern = hear(&redis, SubscriptionKind::Pattern, "b*").await;
    let mut shard = hear(&redis, SubscriptionKind::Shard, "c").await;
    redis.query::<u64>(&publish("PUBLISH", "a", "1")).await.unwrap();
    redis.query::<u64>(&publish("PUBLISH", "bc", "2")).await.unwrap();
    redis.query::<u64>(&publish("SPUBLISH", "c", "3")).await.unwrap();
    assert_eq!(next(&mut channel).await, ("a".into(), "1".into()));
    assert_eq!(next(&mut pattern).await, ("bc".into(), "2".into()));
    assert_eq!(next(&mut shard).await, ("c".into(), "3".into()));
    assert_eq!(redis.subscriber_count(SubscriptionKind::Channel, "a").await.unwrap(), 1);
    assert_eq!(redis.subscriber_count(SubscriptionKind::Shard, "c").await.unwrap(), 1);
    let subscription = Subscription { kind: SubscriptionKind::Channel, channel: "a".into() };
    redis.unsubscribe(&subscription);
    redis.wait_unsubscribed(&subscription).await;
    assert_eq!(redis.subscriber_count(SubscriptionKind::Channel, "a").await.unwrap(), 0);
    redis.close().await;
}

#[tokio::test]
async fn what_was_handed_over_is_sent_in_that_order_whoever_waits() {
    let server = Server::start();
    let redis = up(&server.url()).await;
    let mut heard = hear(&redis, SubscriptionKind::Channel, "order").await;
    let mut answers = Vec::new();
    for number in 0..1000 {
        let answer = redis.enqueue(publish("PUBLISH", "order", &number.to_string())).unwrap();
        if number % 3 == 0 {
            answers.push(answer);
        }
    }
    for number in 0..1000 {
        assert_eq!(next(&mut heard).await.1, number.to_string());
    }
    assert_eq!(answers.len(), 334);
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap(), redis::Value::Int(1));
    }
    let count = redis.enqueue_subscriber_count(SubscriptionKind::Channel, "order").unwrap();
    assert_eq!(count.await.unwrap().unwrap(), redis::Value::Int(1));
    redis.close().await;
}

#[tokio::test]
async fn a_refusal_is_the_commands_fault_and_not_the_connections() {
    let server = Server::start();
    let redis = up(&server.url()).await;
    let refused = redis.query::<u64>(redis::cmd("SET").arg("only-a-key")).await;
    assert!(matches!(refused, Err(CommandError::Refused(_))), "{refused:?}");
    let mixed = [redis.enqueue(publish("LPUSH", "k", "v")), redis.enqueue(publish("INCRBY", "k", "1"))];
    let [first, second] = mixed.map(Result::unwrap);
    assert!(first.await.unwrap().is_ok());
    assert!(matches!(second.await.unwrap(), Err(CommandError::Refused(_))));
    assert_eq!((redis.state(), redis.connections()), (ClientState::Up, 1));
    redis.close().await;
}

#[tokio::test]
async fn after_redis_was_killed_and_started_anew_everything_is_heard_again() {
    let mut server = Server::start();
    let redis = up(&server.url()).await;
    let mut before = hear(&redis, SubscriptionKind::Channel, "before").await;
    let mut pattern = hear(&redis, SubscriptionKind::Pattern, "p*").await;
    server.kill();
    let ClientState::Down(reason) = until(&redis, |state| matches!(state, ClientState::Down(_))).await else {
        unreachable!()
    };
    assert!(!reason.is_empty());
    // Nothing waits for a connection that is not there; and what is wanted meanwhile is wanted.
    let away = redis.query::<u64>(&publish("PUBLISH", "before", "lost")).await;
    assert!(matches!(away, Err(CommandError::NotConnected(_))), "{away:?}");
    let posted = redis.enqueue(publish("PUBLISH", "before", "lost")).unwrap().await.unwrap();
    assert!(matches!(posted, Err(CommandError::NotConnected(_))), "{posted:?}");
    let mut during = hear(&redis, SubscriptionKind::Shard, "during").await;
    server.restart();
    until(&redis, |state| *state == ClientState::Up).await;
    redis.query::<u64>(&publish("PUBLISH", "before", "1")).await.unwrap();
    redis.query::<u64>(&publish("PUBLISH", "px", "2")).await.unwrap();
    redis.query::<u64>(&publish("SPUBLISH", "during", "3")).await.unwrap();
    assert_eq!(next(&mut before).await.1, "1");
    assert_eq!(next(&mut pattern).await.1, "2");
    assert_eq!(next(&mut during).await.1, "3");
    assert_eq!(redis.connections(), 2);
    redis.close().await;
}

#[tokio::test]
async fn a_connection_that_the_server_cuts_comes_back() {
    let server = Server::start();
    let redis = up(&server.url()).await;
    let mut heard = hear(&redis, SubscriptionKind::Channel, "a").await;
    let mut watch = redis.watch();
    watch.mark_unchanged();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut server.connect()).unwrap();
    timeout(SOON, watch.changed()).await.unwrap().unwrap();
    until(&redis, |state| *state == ClientState::Up).await;
    redis.query::<u64>(&publish("PUBLISH", "a", "again")).await.unwrap();
    assert_eq!(next(&mut heard).await.1, "again");
    redis.close().await;
}

#[tokio::test]
async fn a_server_that_hangs_is_away_and_comes_back() {
    let server = Server::start();
    let place = RedisAddress::parse(&server.url(), false).unwrap();
    let redis = RedisClient::start(place, Duration::from_millis(200));
    until(&redis, |state| *state == ClientState::Up).await;
    let mut heard = hear(&redis, SubscriptionKind::Channel, "a").await;
    server.freeze();
    // Nobody can tell whether it was carried out.
    let unknown = redis.query::<u64>(&publish("PUBLISH", "a", "perhaps")).await;
    assert!(matches!(unknown, Err(CommandError::Unknown(_))), "{unknown:?}");
    until(&redis, |state| matches!(state, ClientState::Down(_))).await;
    server.thaw();
    until(&redis, |state| *state == ClientState::Up).await;
    redis.query::<u64>(&publish("PUBLISH", "a", "again")).await.unwrap();
    while next(&mut heard).await.1 != "again" {}
    redis.close().await;
}

#[tokio::test]
async fn a_wrong_password_is_said_and_tried_again() {
    let server = Server::with(0, &["--requirepass", "right"]);
    let redis = RedisClient::start(
        RedisAddress::parse(&server.url(), false).unwrap().with_password("wrong"),
        MAX_WAIT,
    );
    let state = until(&redis, |state| matches!(state, ClientState::Down(_))).await;
    assert!(format!("{state:?}").to_lowercase().contains("pass"), "{state:?}");
    redis.close().await;
    let redis = RedisClient::start(
        RedisAddress::parse(&server.url(), false).unwrap().with_password("right"),
        MAX_WAIT,
    );
    until(&redis, |state| *state == ClientState::Up).await;
    redis.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_each_channel_is_heard_from_the_master_of_its_slot() {
    let cluster = Cluster::start();
    let redis = up(&cluster.urls()).await;
    let (listener, mut heard) = ear();
    for number in 0..30 {
        let subscription =
            Subscription { kind: SubscriptionKind::Shard, channel: format!("room{number}").into() };
        redis.subscribe(subscription.clone(), listener.clone());
        redis.wait_subscribed(subscription).await;
    }
    let mut plain = hear(&redis, SubscriptionKind::Channel, "plain").await;
    let masters: Vec<u64> = cluster
        .masters
        .iter()
        .map(|master| {
            let channels: Vec<String> =
                redis::cmd("PUBSUB").arg("SHARDCHANNELS").arg("room*").query(&mut master.connect()).unwrap();
            channels.len() as u64
        })
        .collect();
    assert!(masters.iter().all(|count| *count > 0) && masters.iter().sum::<u64>() == 30, "{masters:?}");
    let mut names = Vec::new();
    for number in 0..30 {
        redis.query::<u64>(&publish("SPUBLISH", &format!("room{number}"), "x")).await.unwrap();
        names.push(next(&mut heard).await.0);
    }
    assert_eq!(names[29], "room29");
    assert_eq!(redis.subscriber_count(SubscriptionKind::Shard, "room7").await.unwrap(), 1);
    let counted =
        redis.enqueue_subscriber_count(SubscriptionKind::Channel, "plain").unwrap().await.unwrap().unwrap();
    assert_eq!(counted, redis::Value::Int(1));
    redis.enqueue(publish("PUBLISH", "plain", "to all")).unwrap();
    assert_eq!(next(&mut plain).await.1, "to all");
    redis.close().await;
}

/// The slot of a channel, as the cluster has it.
fn slot(server: &Server, channel: &str) -> u16 {
    redis::cmd("CLUSTER").arg("KEYSLOT").arg(channel).query(&mut server.connect()).unwrap()
}

/// Publishes until it is heard: a cluster needs a moment to agree.
async fn published_until_heard(
    redis: &RedisClient,
    channel: &str,
    heard: &mut UnboundedReceiver<ReceivedMessage>,
) {
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    timeout(SOON, async {
        loop {
            pause.tick().await;
            let _ = redis.query::<u64>(&publish("SPUBLISH", channel, "x")).await;
            if heard.try_recv().is_ok() {
                break;
            }
        }
    })
    .await
    .expect("it was heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_follows_its_slot_to_another_master() {
    let cluster = Cluster::start();
    let redis = up(&cluster.urls()).await;
    let mut heard = hear(&redis, SubscriptionKind::Shard, "moving").await;
    published_until_heard(&redis, "moving", &mut heard).await;
    let slot = slot(&cluster.masters[0], "moving");
    let from = usize::from(slot) * 3 / 16_384;
    let to = (from + 1) % 3;
    let id: String = redis::cmd("CLUSTER").arg("MYID").query(&mut cluster.masters[to].connect()).unwrap();
    // First the one that gets it, then the one that loses it, then who only has to know.
    for place in [to, from, 3 - to - from] {
        let mut set = redis::cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg("NODE").arg(&id);
        set.exec(&mut cluster.masters[place].connect()).unwrap();
    }
    let channels = || -> Vec<String> {
        redis::cmd("PUBSUB")
            .arg("SHARDCHANNELS")
            .arg("mov*")
            .query(&mut cluster.masters[to].connect())
            .unwrap()
    };
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    timeout(SOON, async {
        while channels() != ["moving"] {
            pause.tick().await;
        }
    })
    .await
    .expect("the subscription has moved");
    published_until_heard(&redis, "moving", &mut heard).await;
    redis.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_master_of_a_cluster_was_killed_and_started_anew_its_channels_are_heard_again() {
    let mut cluster = Cluster::start();
    let redis = up(&cluster.urls()).await;
    let mut heard = hear(&redis, SubscriptionKind::Shard, "room").await;
    published_until_heard(&redis, "room", &mut heard).await;
    let owner = usize::from(slot(&cluster.masters[0], "room")) * 3 / 16_384;
    cluster.masters[owner].kill();
    until(&redis, |state| matches!(state, ClientState::Down(_))).await;
    cluster.masters[owner].restart();
    cluster.wait_until_whole();
    until(&redis, |state| *state == ClientState::Up).await;
    published_until_heard(&redis, "room", &mut heard).await;
    redis.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_master_that_the_sentinels_name_is_taken() {
    let [first, second, watcher] = free_ports::<3>();
    let mut master = Server::with(first, &[]);
    let replica = Server::with(second, &["--replicaof", "127.0.0.1", &first.to_string()]);
    let sentinel = Sentinel::start(watcher, first);
    let redis = up(&format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port)).await;
    let mut heard = hear(&redis, SubscriptionKind::Channel, "a").await;
    redis.query::<redis::Value>(redis::cmd("SET").arg("key").arg("old master")).await.unwrap();
    master.kill();
    until(&redis, |state| matches!(state, ClientState::Down(_))).await;
    until(&redis, |state| *state == ClientState::Up).await;
    let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut replica.connect()).unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    redis.query::<u64>(&publish("PUBLISH", "a", "from the new master")).await.unwrap();
    assert_eq!(next(&mut heard).await.1, "from the new master");
    redis.close().await;
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_left_at_the_first_refusal() {
    let server = Server::start();
    let redis = up(&server.url()).await;
    let [nowhere] = free_ports::<1>();
    let mut admin = server.connect();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(nowhere).exec(&mut admin).unwrap();
    let refused = redis.query::<redis::Value>(redis::cmd("SET").arg("k").arg("v")).await;
    assert!(matches!(refused, Err(CommandError::Refused(_))), "{refused:?}");
    until(&redis, |state| *state == ClientState::Down("the server has become a replica".into())).await;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut admin).unwrap();
    until(&redis, |state| *state == ClientState::Up).await;
    redis.query::<redis::Value>(redis::cmd("SET").arg("k").arg("v")).await.unwrap();
    redis.close().await;
}

#[tokio::test]
async fn tls_is_spoken_to_a_server_whose_authority_is_known_and_to_no_other() {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = parameters.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (file("cert.pem", certificate.pem()), file("key.pem", key.serialize_pem()));
    let ca = file("ca.pem", root.pem());
    let [port] = free_ports::<1>();
    let words = ["--tls-port", &port.to_string(), "--tls-cert-file", &cert, "--tls-key-file", &key];
    let more = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    let _server = Server::with(0, &[&words[..], &more].concat());
    let place = RedisAddress::parse(&format!("rediss://localhost:{port}"), false).unwrap();
    let redis = RedisClient::start(place.clone().with_root_certificates(root.pem().into_bytes()), MAX_WAIT);
    until(&redis, |state| *state == ClientState::Up).await;
    let mut heard = hear(&redis, SubscriptionKind::Channel, "a").await;
    redis.query::<u64>(&publish("PUBLISH", "a", "secret")).await.unwrap();
    assert_eq!(next(&mut heard).await.1, "secret");
    redis.close().await;
    let stranger = RedisClient::start(place, MAX_WAIT);
    until(&stranger, |state| matches!(state, ClientState::Down(_))).await;
    stranger.close().await;
}
