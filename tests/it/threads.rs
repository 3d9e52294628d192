//! The relay threads with many tunnels, told and asked while messages pass.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mainstay::metrics::Metrics;
use mainstay::relay::{
    CloseObserver, CloseReason, PacedClose, Relay, SessionInfo, Tunnel, TunnelLimits, TunnelSelector,
};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{RawStream, client_frame, node_frame, soon};

const TUNNELS: u64 = 1_000;
const RULES: TunnelLimits = TunnelLimits {
    idle_timeout: Duration::from_secs(3600),
    max_message_size: u64::MAX,
    ping_interval: None,
    close_timeout: Duration::from_secs(10),
};

/// A relay with tunnels by turns on two nodes.
struct Threads {
    relay: Relay,
    /// Client and node of each tunnel; its id is its place.
    peers: Vec<[RawStream; 2]>,
    drained: Arc<AtomicUsize>,
}

impl Threads {
    async fn set() -> Self {
        raise_descriptors();
        let drained = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&drained);
        let observer: CloseObserver = Arc::new(move |_, outcome| {
            count.fetch_add(usize::from(outcome.reason == CloseReason::Drained), Relaxed);
        });
        let (relay, metrics) = (Relay::start(3, &observer).unwrap(), Metrics::new(3));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peers = Vec::new();
        for id in 0..TUNNELS {
            let (client, ours) = connect(&listener).await;
            let (node, theirs) = connect(&listener).await;
            let info = SessionInfo {
                id,
                client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                node_connection: metrics.node("chat", ["ws1", "ws2"][(id % 2) as usize]).acquire_permit(),
                route: Arc::from("/"),
                generation: 1,
                opened_at: SystemTime::now(),
                affinity: ("none", "none"),
                key: None,
                trace: [0; 16],
                permit: None,
            };
            let (client, node) = (client.into_std().unwrap().into(), node.into_std().unwrap().into());
            let (from_client, from_node) = (Bytes::new(), Bytes::new());
            let tunnel = Tunnel {
                client,
                node,
                client_tls: None,
                node_tls: None,
                from_client,
                from_node,
                limits: RULES,
                info,
            };
            assert!(relay.adopt(tunnel));
            peers.push([ours, theirs]);
        }
        Self { relay, peers, drained }
    }

    fn end(self) {
        let close = PacedClose::new(TunnelSelector::all(), CloseReason::Shutdown, 1001, "");
        self.relay.shut_down(close.with_grace(Duration::ZERO));
        self.relay.join();
    }
}

/// The relay's socket and the peer's.
async fn connect(listener: &TcpListener) -> (TcpStream, RawStream) {
    let peer = TcpStream::connect(listener.local_addr().unwrap());
    let (peer, accepted) = tokio::join!(peer, listener.accept());
    (accepted.unwrap().0, RawStream(peer.unwrap()))
}

fn on_node(node: &'static str) -> TunnelSelector {
    TunnelSelector::new(move |info| {
        &*info.node_connection.pool == "chat" && &*info.node_connection.node == node
    })
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

#[tokio::test]
async fn a_thousand_tunnels_are_listed_page_by_page_with_what_they_carried() {
    let mut threads = Threads::set().await;
    for [client, node] in threads.peers.iter_mut().step_by(100) {
        client.send(client_frame(2, b"ping me")).await;
        node.expect(&client_frame(2, b"ping me")).await;
        node.send(node_frame(1, b"ok")).await;
        client.expect(&node_frame(1, b"ok")).await;
    }
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = soon(threads.relay.list_sessions(TunnelSelector::all(), after, 300)).await;
        for session in &page {
            let (bytes, messages) = if session.id % 100 == 0 { ([13, 4], [1, 1]) } else { ([0; 2], [0; 2]) };
            assert_eq!((session.bytes, session.messages), (bytes, messages));
            assert_eq!(session.last_message_at.is_some(), session.id % 100 == 0);
            ids.push(session.id);
        }
        let Some(last) = page.last() else { break };
        after = Some(last.id);
    }
    assert_eq!(ids, Vec::from_iter(0..TUNNELS));
    let page = soon(threads.relay.list_sessions(on_node("ws2"), Some(500), 10)).await;
    let ids: Vec<u64> = page.iter().map(|session| session.id).collect();
    assert_eq!(ids, Vec::from_iter((501..520).step_by(2)));
    threads.end();
}

#[tokio::test]
async fn one_nodes_tunnels_are_closed_between_frames_and_the_others_carry_on() {
    let mut threads = Threads::set().await;
    // A frame that is half way through when the Close comes.
    let frame = node_frame(2, &[7; 100]);
    threads.peers[0][1].send(&frame[..50]).await;
    threads.peers[0][0].expect(&frame[..50]).await;
    let close = PacedClose::new(on_node("ws1"), CloseReason::Drained, 1012, "moved");
    let close = close.over(Duration::from_millis(300)).with_grace(Duration::from_secs(60));
    let handle = threads.relay.close(close);
    assert_eq!(soon(handle.counted()).await, 500);
    for (id, peers) in threads.peers.iter_mut().enumerate() {
        let [client, node] = peers;
        if id % 2 == 1 {
            client.send(client_frame(1, b"still here")).await;
            node.expect(&client_frame(1, b"still here")).await;
            continue;
        }
        assert_eq!(node.read_close_code().await, 1012);
        if id == 0 {
            node.send(&frame[50..]).await;
            client.expect(&frame[50..]).await;
        }
        assert_eq!(client.read_close_code().await, 1012);
        client.send(client_frame(8, &1012u16.to_be_bytes())).await;
        node.send(node_frame(8, &1012u16.to_be_bytes())).await;
    }
    soon(handle.finished()).await;
    assert_eq!((handle.closed(), handle.left(), threads.relay.tunnel_count()), (500, 0, 500));
    assert_eq!(threads.drained.load(Relaxed), 500);
    let page = soon(threads.relay.list_sessions(TunnelSelector::all(), None, 1_000)).await;
    assert!(page.iter().all(|session| &*session.node == "ws2" && !session.is_closing));
    threads.end();
}

#[tokio::test]
async fn one_session_is_killed_and_its_neighbours_are_not() {
    let mut threads = Threads::set().await;
    let kill = PacedClose::new(TunnelSelector::sessions([500].into()), CloseReason::Killed, 1012, "");
    let handle = threads.relay.close(kill.with_grace(Duration::from_secs(60)));
    let [client, node] = &mut threads.peers[500];
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1012, 1012));
    let page = soon(threads.relay.list_sessions(TunnelSelector::all(), Some(498), 3)).await;
    let closing: Vec<_> = page.iter().map(|session| (session.id, session.is_closing)).collect();
    assert_eq!(closing, [(499, false), (500, true), (501, false)]);
    client.send(client_frame(8, &1012u16.to_be_bytes())).await;
    node.send(node_frame(8, &1012u16.to_be_bytes())).await;
    soon(handle.finished()).await;
    assert_eq!(threads.relay.tunnel_count(), TUNNELS as usize - 1);
    threads.end();
}
