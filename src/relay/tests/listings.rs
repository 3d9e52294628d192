//! Listings while tunnels run.

use super::*;

#[tokio::test]
async fn a_listing_shows_tunnels_as_they_run() {
    let stage = Stage::set(2);
    let (mut one, _other) = (stage.tunnel(9, "ws1"), stage.tunnel(4, "ws2"));
    one.say("hello");
    one.say("again");
    one.node.write_all(&frame(1, b"yes", None)).unwrap();
    read(&mut one.client, 5);
    let [quiet, busy] = &stage.relay.list_sessions(TunnelSelector::all(), None, 10).await[..] else {
        panic!("two sessions")
    };
    assert_eq!((quiet.id, quiet.last_message_at, quiet.bytes), (4, None, [0, 0]));
    assert_eq!((busy.id, busy.bytes, busy.messages), (9, [22, 5], [2, 1]));
    assert!(busy.last_message_at.is_some_and(|at| at.elapsed().unwrap_or_default() < DEADLINE));
    assert_eq!((&*busy.pool, &*busy.node, &*busy.route), ("chat", "ws1", "/"));
    assert_eq!((busy.generation, busy.opened_at), (3, SystemTime::UNIX_EPOCH));
    assert_eq!((busy.affinity, busy.round_trip, busy.is_closing), (("cookie", "kept"), None, false));
    let of = |pool: &str, node: Option<&str>| {
        let (pool, node) = (pool.to_owned(), node.map(str::to_owned));
        let selector = TunnelSelector::new(move |info| {
            *info.node_connection.pool == pool
                && node.as_ref().is_none_or(|node| *info.node_connection.node == *node)
        });
        let page = stage.relay.list_sessions(selector, None, 10);
        async { page.await.iter().map(|session| session.id).collect::<Vec<_>>() }
    };
    assert_eq!(of("chat", Some("ws2")).await, [4]);
    assert_eq!(of("chat", None).await, [4, 9]);
    assert_eq!(of("other", None).await, [0; 0]);
    stage.end();
}

#[tokio::test]
async fn pages_of_a_listing_hold_every_session_once_in_order() {
    let stage = Stage::set(3);
    let ids: Vec<u64> = (0..120).map(crate::affinity::hash::mix).collect();
    let _peers: Vec<Peers> = ids.iter().map(|id| stage.tunnel(*id, "ws1")).collect();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = stage.relay.list_sessions(TunnelSelector::all(), after, 50).await;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        listed.extend(page.iter().map(|session| session.id));
    }
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(listed, sorted);
    assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 0).await, []);
    stage.end();
}
