//! Tunnels between two relays of one process, over real sockets, with and without TLS.

mod peer;
mod stream_states;
mod traffic;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls::SupportedCipherSuite;

use super::*;
use crate::metrics::Metrics;
use crate::net::connection_limit::ConnectionLimiter;
use crate::relay::tls::tests::suites;
use crate::relay::tunnel_state::TunnelCounters;
use crate::relay::{
    CloseObserver, CloseReason, PacedClose, Relay, SessionEnd, SessionInfo, Tunnel, TunnelLimits,
    TunnelSelector,
};
use crate::ws::{close, frame};
use peer::{Peer, client, node};

/// The most time that anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A relay and its counters, as another process has its own.
struct Process {
    relay: Relay,
    metrics: Arc<Metrics>,
    places: Arc<ConnectionLimiter>,
    ends: Receiver<(u64, SessionEnd)>,
}

/// Both peers of a tunnel.
struct MigratedPeers {
    client: Peer,
    node: Peer,
}

/// How both ends of a tunnel are protected.
type Suites = [Option<SupportedCipherSuite>; 2];

const PLAIN: Suites = [None, None];

/// Plain, and every suite of both versions on the client's end, on the node's, and on both.
fn all_suites() -> Vec<Suites> {
    let of = |suite| [[Some(suite), None], [None, Some(suite)], [Some(suite), Some(suite)]];
    [PLAIN].into_iter().chain(suites().into_iter().flat_map(of)).collect()
}

impl Process {
    fn start() -> Self {
        let (sender, ends) = channel();
        let sender = parking_lot::Mutex::new(sender);
        let observer: CloseObserver = Arc::new(move |info: &SessionInfo, end: &SessionEnd| {
            let _ = sender.lock().send((info.id, *end));
        });
        let relay = Relay::start(2, &observer).unwrap();
        Self { relay, metrics: Metrics::new(2), places: Arc::default(), ends }
    }

    fn info(&self, id: u64) -> SessionInfo {
        let mut permit = self.places.acquire(u32::MAX).unwrap();
        assert!(permit.acquire_for_client(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        SessionInfo {
            id,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            node_connection: self.metrics.node("chat", "ws1").acquire_permit(),
            route: Arc::from("/chat"),
            generation: 3,
            opened_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
            affinity: ("cookie", "kept"),
            key: Some((u64::MAX - id).into()),
            trace: [9; 16],
            permit: Some(permit),
        }
    }

    fn tunnel(&self, id: u64, suites: Suites) -> MigratedPeers {
        let (client_peer, client, client_tls) = client(suites[0]);
        let (node_peer, node, node_tls) = node(suites[1]);
        let tunnel = Tunnel {
            client,
            node,
            client_tls,
            node_tls,
            from_client: Bytes::new(),
            from_node: Bytes::new(),
            limits: TunnelLimits {
                idle_timeout: Duration::from_secs(3600),
                max_message_size: u64::MAX,
                ping_interval: None,
                close_timeout: Duration::from_secs(10),
            },
            info: self.info(id),
        };
        assert!(self.relay.adopt(tunnel));
        MigratedPeers { client: client_peer, node: node_peer }
    }

    fn stage(&self, frozen: &FrozenBatch) -> StagedTunnels {
        StagedTunnels::new(received(frozen), TunnelCounters { metrics: &self.metrics, limiter: &self.places })
            .unwrap()
    }

    /// All tunnels of this process go over to `other`.
    async fn hand_over(&self, other: &Self) {
        let frozen = self.relay.freeze(usize::MAX).await;
        let staged = other.stage(&frozen);
        frozen.release();
        other.relay.activate(staged);
        assert!(self.relay.wait_one_tick().await && other.relay.wait_one_tick().await);
        assert_eq!(self.relay.tunnel_count(), 0);
    }

    fn next_end(&self) -> (u64, SessionEnd) {
        self.ends.recv_timeout(DEADLINE).expect("a tunnel ends")
    }

    fn assert_no_end(&self) {
        assert!(self.ends.try_recv().is_err());
    }

    fn end(self) {
        self.relay.shut_down(drain(0));
        self.relay.join();
    }
}

/// Frozen tunnels as another process receives them: states, and descriptors of its own.
fn received(frozen: &FrozenBatch) -> Vec<ReceivedTunnel> {
    let received_tunnel = |tunnel: &FrozenTunnel| ReceivedTunnel {
        state: tunnel.state().to_vec().into(),
        sockets: tunnel.sockets().map(|socket| socket.try_clone_to_owned().unwrap()),
    };
    frozen.tunnels().map(received_tunnel).collect()
}

fn drain(grace: u64) -> PacedClose {
    let close = PacedClose::new(TunnelSelector::all(), CloseReason::Drained, 1012, "moved");
    close.with_grace(Duration::from_millis(grace))
}

fn text(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    frame::encode_control(frame::opcode::TEXT, payload, mask)
}

const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

impl MigratedPeers {
    /// A message each way.
    fn talk(&mut self, word: &str) {
        let (there, back) = (text(word.as_bytes(), MASK), text(word.as_bytes(), None));
        self.client.write_all(&there).unwrap();
        self.node.expect(&there);
        self.node.write_all(&back).unwrap();
        self.client.expect(&back);
    }

    /// Both send a Close.
    fn part(&mut self, code: u16) {
        self.client.write_all(&close::encode_close(code, "", MASK)).unwrap();
        self.node.write_all(&close::encode_close(code, "", None)).unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_continues_in_another_process_and_is_the_same() {
    let (old, new) = (Process::start(), Process::start());
    let suites = all_suites();
    let count = suites.len();
    let mut peers: Vec<MigratedPeers> =
        (0..).zip(suites).map(|(id, suites)| old.tunnel(id, suites)).collect();
    peers.iter_mut().for_each(|peers| peers.talk("before"));
    let mut before = old.relay.list_sessions(TunnelSelector::all(), None, 99).await;
    old.hand_over(&new).await;
    let mut after = new.relay.list_sessions(TunnelSelector::all(), None, 99).await;
    // The wall is looked at again for each listing.
    before.iter_mut().chain(&mut after).for_each(|session| session.last_message_at = None);
    assert_eq!((before.len(), before), (count, after));
    let live = |process: &Process| process.metrics.node("chat", "ws1").live() as usize;
    assert_eq!((live(&old), live(&new)), (0, count));
    assert_eq!((old.places.connections() as usize, new.places.connections() as usize), (0, count));
    peers.iter_mut().for_each(|peers| peers.talk("after"));
    old.assert_no_end();
    new.assert_no_end();
    peers[2].part(1000);
    drop(peers.remove(2));
    let (id, end) = new.next_end();
    assert_eq!((id, end.code, end.reason), (2, 1000, CloseReason::Closed));
    assert_eq!(end.messages, [2, 2]);
    old.end();
    new.end();
}

#[tokio::test]
async fn a_resumed_tunnel_relays_what_came_meanwhile() {
    let process = Process::start();
    let suites = all_suites();
    let count = suites.len();
    let mut peers: Vec<MigratedPeers> =
        (0..).zip(suites).map(|(id, suites)| process.tunnel(id, suites)).collect();
    for round in 0..4 {
        let frozen = process.relay.freeze(usize::MAX).await;
        assert_eq!(frozen.len(), count);
        assert_eq!(process.relay.list_sessions(TunnelSelector::all(), None, 99).await.len(), count);
        let message = text(b"meanwhile", MASK);
        peers.iter_mut().for_each(|peers| peers.client.write_all(&message).unwrap());
        if round % 2 == 0 {
            frozen.resume()
        } else {
            drop(frozen)
        }
        peers.iter_mut().for_each(|peers| peers.node.expect(&message));
        peers.iter_mut().for_each(|peers| peers.talk("after"));
    }
    process.assert_no_end();
    process.end();
}

#[tokio::test]
async fn a_staged_and_discarded_tunnel_was_never_touched() {
    let (old, new) = (Process::start(), Process::start());
    let suites = all_suites();
    let count = suites.len();
    let mut peers: Vec<MigratedPeers> =
        (0..).zip(suites).map(|(id, suites)| old.tunnel(id, suites)).collect();
    let frozen = old.relay.freeze(usize::MAX).await;
    let message = text(b"meanwhile", MASK);
    peers.iter_mut().for_each(|peers| peers.client.write_all(&message).unwrap());
    let staged = new.stage(&frozen);
    assert_eq!(staged.len(), count);
    assert_eq!(new.metrics.node("chat", "ws1").live() as usize, count);
    staged.discard();
    assert_eq!((new.metrics.node("chat", "ws1").live(), new.places.connections()), (0, 0));
    frozen.resume();
    peers.iter_mut().for_each(|peers| peers.node.expect(&message));
    peers.iter_mut().for_each(|peers| peers.talk("after"));
    old.assert_no_end();
    new.assert_no_end();
    old.end();
    new.end();
}

#[tokio::test]
async fn a_released_tunnel_sends_nothing_to_anyone() {
    let (old, new) = (Process::start(), Process::start());
    let suites = all_suites();
    let mut peers: Vec<MigratedPeers> =
        (0..).zip(suites).map(|(id, suites)| old.tunnel(id, suites)).collect();
    let frozen = old.relay.freeze(usize::MAX).await;
    let staged = new.stage(&frozen);
    frozen.release();
    assert!(old.relay.wait_one_tick().await);
    assert_eq!((old.relay.tunnel_count(), old.metrics.node("chat", "ws1").live()), (0, 0));
    peers
        .iter_mut()
        .for_each(|peers| assert!(peers.client.has_received_nothing() && peers.node.has_received_nothing()));
    old.assert_no_end();
    // Nobody has them any more: the peers see their streams cut, without a close_notify.
    staged.discard();
    for peers in &mut peers {
        for peer in [&mut peers.client, &mut peers.node] {
            assert_eq!(peer.rest().1, !peer.has_tls(), "a truncated stream has no close_notify");
        }
    }
    new.assert_no_end();
    old.end();
    new.end();
}

#[tokio::test]
async fn a_batch_has_at_most_its_limit_and_the_next_has_other_tunnels() {
    let process = Process::start();
    let mut peers: Vec<MigratedPeers> = (0..7).map(|id| process.tunnel(id, PLAIN)).collect();
    let first = process.relay.freeze(4).await;
    let second = process.relay.freeze(4).await;
    let mut ids: Vec<u64> = first.tunnels().chain(second.tunnels()).map(FrozenTunnel::id).collect();
    ids.sort_unstable();
    assert_eq!((first.len(), second.len(), ids), (4, 3, (0..7).collect()));
    assert!(process.relay.freeze(4).await.is_empty());
    drop((first, second));
    peers.iter_mut().for_each(|peers| peers.talk("after"));
    process.end();
}

#[tokio::test]
async fn a_close_of_a_frozen_tunnel_waits_for_its_return() {
    let process = Process::start();
    let mut peers: Vec<MigratedPeers> = (0..4).map(|id| process.tunnel(id, PLAIN)).collect();
    let frozen = process.relay.freeze(2).await;
    let handle = process.relay.close(drain(60_000));
    assert_eq!(handle.counted().await, 4);
    let away: Vec<u64> = frozen.tunnels().map(FrozenTunnel::id).collect();
    let bye = |peers: &mut MigratedPeers| {
        peers.client.expect(&close::encode_close(1012, "moved", None));
        peers.node.expect(&[0x88]);
    };
    (0..4).filter(|id| !away.contains(id)).for_each(|id| bye(&mut peers[id as usize]));
    frozen.resume();
    away.iter().for_each(|&id| bye(&mut peers[id as usize]));
    drop(peers);
    handle.finished().await;
    process.end();
}

/// A binary frame of any length.
fn frame_of(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x82];
    match payload.len() {
        len @ 0..126 => frame.push(bit | len as u8),
        len => {
            frame.push(bit | 126);
            frame.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask.map_or(vec![], |key| key.to_vec()));
    frame.extend_from_slice(payload);
    frame
}
