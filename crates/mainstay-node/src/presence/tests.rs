//! Presence in memory and in a real Redis.

use std::process::{Child, Command, Stdio};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client};
use tokio::time::timeout;

use super::*;

/// A Redis of the test's own, on a socket in a folder of its own.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Self::run(&folder);
        Self { child, folder }
    }

    fn run(folder: &tempfile::TempDir) -> Child {
        let socket = folder.path().join("redis.sock");
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(socket)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::run(&self.folder);
    }

    async fn link(&self) -> ConnectionManager {
        let url = format!("unix://{}", self.folder.path().join("redis.sock").display());
        let client = Client::open(url).unwrap();
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(usize::MAX)
            .set_min_delay(Duration::from_millis(10))
            .set_max_delay(Duration::from_millis(100))
            .set_response_timeout(Some(Duration::from_secs(2)));
        ConnectionManager::new_with_config(client, config).await.unwrap()
    }

    async fn node(&self, name: &str, lease: Duration) -> Presence {
        let place = PresenceSettings { prefix: "user", is_cluster: false, lease };
        Presence::in_redis(&Arc::from(name), &place, self.link().await)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

const LONG: Duration = Duration::from_secs(60);

fn alice() -> User {
    User::parse("alice").unwrap()
}

/// Asks until the user has these sockets, and gives what is known of them.
async fn sockets(presence: &Presence, wanted: &[&str]) -> Vec<UserConnection> {
    let asked = async {
        loop {
            if let Ok(connections) = presence.connections_of(&alice()).await {
                let mut there: Vec<_> = connections.iter().map(|c| c.socket_id.as_str()).collect();
                there.sort_unstable();
                if there == wanted {
                    return connections;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), asked).await.expect("the user has these sockets")
}

#[tokio::test]
async fn in_memory_the_nodes_of_a_process_know_each_others_users() {
    let roll = Arc::new(Roster::default());
    let one = Presence::in_memory(&"ws1".into(), Arc::clone(&roll));
    let two = Presence::in_memory(&"ws2".into(), roll);
    one.add(&alice(), "a");
    two.add(&alice(), "b");
    let known = sockets(&one, &["a", "b"]).await;
    assert!(known.iter().any(|c| c.node_id == "ws2" && c.status == "online"));
    one.remove(&alice(), "a");
    sockets(&two, &["b"]).await;
    assert!(two.close().await);
    sockets(&one, &[]).await;
}

#[tokio::test]
async fn in_redis_the_hashes_are_as_fleets_keep_them_and_several_connections_are_all_known() {
    let server = Server::start();
    let (one, two) = (server.node("ws1", LONG).await, server.node("ws2", LONG).await);
    one.add(&alice(), "a");
    sockets(&two, &["a"]).await;
    two.add(&alice(), "b");
    let known = sockets(&one, &["a", "b"]).await;
    let mut link = server.link().await;
    let newest: String = link.hget("user:connections", "alice").await.unwrap();
    // Of two that came in one millisecond either may be listed first.
    let newest = known.iter().find(|connection| connection.node_id == newest).unwrap();
    assert_eq!(newest.connected_at, known[0].connected_at);
    let hash: HashMap<String, String> = link.hgetall("user:alice").await.unwrap();
    assert_eq!(hash["socketId"], newest.socket_id);
    assert_eq!(hash["nodeId"], newest.node_id);
    assert_eq!(hash["status"], "online");
    assert!(humantime::parse_rfc3339(&hash["connectedAt"]).is_ok(), "{hash:?}");
    // The newest goes: what the hash says is that of the other.
    let (gone, stays) = if known[0].socket_id == "b" { (&two, &one) } else { (&one, &two) };
    gone.remove(&alice(), &known[0].socket_id);
    let left = sockets(stays, &[&known[1].socket_id]).await;
    let hash: HashMap<String, String> = link.hgetall("user:alice").await.unwrap();
    assert_eq!(hash["socketId"], left[0].socket_id);
    assert_eq!(link.hget::<_, _, String>("user:connections", "alice").await.unwrap(), left[0].node_id);
    // A field of somebody else stays, everything of ours goes.
    link.hset::<_, _, _, ()>("user:alice", "name", "Alice").await.unwrap();
    assert!(one.close().await && two.close().await);
    let hash: HashMap<String, String> = link.hgetall("user:alice").await.unwrap();
    assert_eq!(hash, HashMap::from([("name".into(), "Alice".into())]));
    let mut keys: Vec<String> = link.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(keys, ["user:alice"]);
}

#[tokio::test]
async fn a_status_is_that_of_one_connection_and_the_hash_has_that_of_the_newest() {
    let server = Server::start();
    let in_memory = Presence::in_memory(&"ws1".into(), Arc::default());
    let nodes = [in_memory, server.node("ws1", LONG).await];
    for node in &nodes {
        node.add(&alice(), "a");
        node.add(&alice(), "b");
        // Of two that came in one millisecond the hash has b, too.
        node.set_status(&alice(), "b", "away");
        node.set_status(&alice(), "nobody", "busy");
        let known = async || -> HashMap<_, _> {
            let known = sockets(node, &["a", "b"]).await;
            known.into_iter().map(|connection| (connection.socket_id, connection.status)).collect()
        };
        let wanted = [("a", "online"), ("b", "away")].map(|(socket, status)| (socket.into(), status.into()));
        let written = async { while known().await != HashMap::from(wanted.clone()) {} };
        timeout(Duration::from_secs(20), written).await.expect("one is away, the other is not");
    }
    let hash: HashMap<String, String> = server.link().await.hgetall("user:alice").await.unwrap();
    assert_eq!((&*hash["socketId"], &*hash["status"]), ("b", "away"), "{hash:?}");
}

#[tokio::test]
async fn a_socket_that_came_back_on_another_node_is_not_removed_by_the_one_it_left() {
    let server = Server::start();
    let (one, two) = (server.node("ws1", LONG).await, server.node("ws2", LONG).await);
    one.add(&alice(), "a");
    sockets(&two, &["a"]).await;
    two.add(&alice(), "a");
    let moved = async { while sockets(&one, &["a"]).await[0].node_id != "ws2" {} };
    timeout(Duration::from_secs(20), moved).await.unwrap();
    assert!(one.close().await);
    assert_eq!(sockets(&two, &["a"]).await[0].node_id, "ws2");
}

/// What a life of a node has written that said that it lives for a millisecond and then died: alice and 149 others.
async fn died(boot: &str, link: &mut ConnectionManager) {
    let keys = PresenceKeys::new("user", false);
    let node = boot.split(':').next().unwrap();
    let _: (u8, Vec<String>) = keys.renew(boot, 1).query_async(link).await.unwrap();
    for n in 0..150 {
        let user = if n == 0 { "alice".into() } else { format!("user {n}") };
        let json = format!(
            r#"{{"socketId":"s{n}","nodeId":"{node}","connectedAt":"2026-01-01T00:00:00.000Z","status":"online","boot":"{boot}"}}"#
        );
        let _: u8 = keys.arrive(boot, &user, &json, &format!("s{n}")).query_async(link).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_starts_anew_removes_at_once_what_its_former_life_left_behind() {
    let server = Server::start();
    let mut link = server.link().await;
    died("ws1:1", &mut link).await;
    // It beats again long after the test has ended.
    let _anew = server.node("ws1", 20 * LONG).await;
    let nobody = async { while link.exists::<_, bool>("user:connections").await.unwrap() {} };
    timeout(Duration::from_secs(20), nobody).await.expect("nothing of the former life is left");
    assert!(!link.exists::<_, bool>("user:alice").await.unwrap());
}

#[tokio::test]
async fn what_a_node_leaves_behind_that_dies_is_removed_by_the_others() {
    let server = Server::start();
    let mut link = server.link().await;
    died("dead:1", &mut link).await;
    let alive = server.node("ws1", Duration::from_secs(1)).await;
    alive.add(&alice(), "a");
    sockets(&alive, &["a"]).await;
    assert_eq!(link.hget::<_, _, String>("user:connections", "alice").await.unwrap(), "ws1");
    let tidied = async { while link.hlen::<_, usize>("user:connections").await.unwrap() > 1 {} };
    timeout(Duration::from_secs(20), tidied).await.expect("nothing of the dead node is left");
}

#[tokio::test]
async fn after_redis_was_away_everything_is_there_again_and_who_left_is_not() {
    let mut server = Server::start();
    let node = server.node("ws1", LONG).await;
    for socket in ["a", "b"] {
        node.add(&alice(), socket);
    }
    sockets(&node, &["a", "b"]).await;
    let mut link = server.link().await;
    let boot: Vec<String> = link.zrange("user-leases", 0, -1).await.unwrap();
    assert_eq!(boot.len(), 1, "the lease comes first: without it nobody would tidy up after the node");
    server.kill();
    node.remove(&alice(), "a");
    node.add(&alice(), "c");
    assert!(timeout(Duration::from_secs(20), node.connections_of(&alice())).await.unwrap().is_err());
    server.restart();
    sockets(&node, &["b", "c"]).await;
    let again: Vec<String> = server.link().await.zrange("user-leases", 0, -1).await.unwrap();
    assert_eq!(again, boot);
}

#[test]
fn on_a_redis_cluster_all_of_presence_is_in_one_slot() {
    let keys = PresenceKeys::new("user", true);
    assert_eq!(keys.user("alice"), "{user}:alice");
    assert_eq!(PresenceKeys::new("user", false).user("alice"), "user:alice");
}

#[tokio::test]
async fn an_entry_that_another_server_keeps_of_its_own_user_is_there_again_when_the_last_connection_leaves() {
    let server = Server::start();
    let one = server.node("one", LONG).await;
    let mut link = server.link().await;
    let entry = [
        ("socketId", "theirs"),
        ("nodeId", "js"),
        ("connectedAt", "2020-01-01T00:00:00.000Z"),
        ("status", "online"),
    ];
    link.hset_multiple::<_, _, _, ()>("user:alice", &entry).await.unwrap();
    link.hset::<_, _, _, ()>("user:connections", "alice", "js").await.unwrap();
    one.add(&alice(), "ours");
    assert_eq!(sockets(&one, &["ours"]).await[0].node_id, "one");
    let shown: String = link.hget("user:alice", "socketId").await.unwrap();
    assert_eq!(shown, "ours", "the newest is shown");
    one.remove(&alice(), "ours");
    sockets(&one, &[]).await;
    let left: HashMap<String, String> = link.hgetall("user:alice").await.unwrap();
    let expected = entry.map(|(field, value)| (field.to_owned(), value.to_owned()));
    assert_eq!(left, HashMap::from(expected));
    assert_eq!(link.hget::<_, _, String>("user:connections", "alice").await.unwrap(), "js");
    assert!(one.close().await);
}
