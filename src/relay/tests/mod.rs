//! The relay with its threads, between peers on Unix sockets.

mod closes;
mod ends;
mod keepalive;
mod listings;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::*;
use crate::metrics::{CloseSide, Metrics};
use crate::ws::{close, frame};

/// The most time that anything may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Limits that nothing reaches in a test.
const LIMITS: TunnelLimits = TunnelLimits {
    idle_timeout: Duration::from_secs(3600),
    max_message_size: u64::MAX,
    ping_interval: None,
    close_timeout: Duration::from_secs(10),
};

/// A relay, the nodes' meters, and the outcomes as they come.
struct Stage {
    relay: Relay,
    metrics: Arc<Metrics>,
    ends: Receiver<(u64, SessionEnd)>,
}

/// Both peers of a tunnel.
struct Peers {
    client: UnixStream,
    node: UnixStream,
}

impl Stage {
    fn set(threads: usize) -> Self {
        let (sender, ends) = channel();
        let sender = parking_lot::Mutex::new(sender);
        let observer: CloseObserver = Arc::new(move |info: &SessionInfo, end: &SessionEnd| {
            let _ = sender.lock().send((info.id, *end));
        });
        let relay = Relay::start(threads, &observer).unwrap();
        Self { relay, metrics: Metrics::new(threads), ends }
    }

    fn tunnel(&self, id: u64, node: &str) -> Peers {
        self.tunnel_with(id, node, LIMITS)
    }

    fn tunnel_with(&self, id: u64, node: &str, limits: TunnelLimits) -> Peers {
        let (tunnel, peers) = self.new_tunnel(id, node, limits);
        assert!(self.relay.adopt(tunnel));
        peers
    }

    fn new_tunnel(&self, id: u64, node: &str, limits: TunnelLimits) -> (Tunnel, Peers) {
        let info = SessionInfo {
            id,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            node_connection: self.metrics.node("chat", node).acquire_permit(),
            route: Arc::from("/"),
            generation: 3,
            opened_at: SystemTime::UNIX_EPOCH,
            affinity: ("cookie", "kept"),
            key: None,
            trace: [0; 16],
            permit: None,
        };
        let pair = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_read_timeout(Some(DEADLINE)).unwrap();
            (OwnedFd::from(ours), theirs)
        };
        let ((client, client_peer), (node, node_peer)) = (pair(), pair());
        let early = Bytes::new();
        let tunnel = Tunnel {
            client,
            node,
            client_tls: None,
            node_tls: None,
            from_client: early.clone(),
            from_node: early,
            limits,
            info,
        };
        (tunnel, Peers { client: client_peer, node: node_peer })
    }

    fn next_end(&self) -> (u64, SessionEnd) {
        self.ends.recv_timeout(DEADLINE).expect("a tunnel ends")
    }

    fn end(self) {
        self.relay.shut_down(end(0));
        self.relay.join();
    }
}

impl Peers {
    /// A message of the client's that reaches the node.
    fn say(&mut self, word: &str) {
        let said = frame(1, word.as_bytes(), Some([1; 4]));
        self.client.write_all(&said).unwrap();
        assert_eq!(read(&mut self.node, said.len()), said);
    }

    /// Both hear a Close with this code and answer it.
    fn part(&mut self, code: u16) {
        assert_eq!((close_code(&mut self.client), close_code(&mut self.node)), (code, code));
        self.client.write_all(&close::encode_close(code, "", Some([1; 4]))).unwrap();
        self.node.write_all(&close::encode_close(code, "", None)).unwrap();
    }
}

fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    frame::encode_control(opcode, payload, mask)
}

fn read(peer: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

fn close_code(peer: &mut UnixStream) -> u16 {
    let head = read(peer, 2);
    assert_eq!(head[0], 0x88, "a Close");
    let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { read(peer, 4) };
    let payload = read(peer, usize::from(head[1] & 0x7f));
    u16::from_be_bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]])
}

/// A close of the tunnels of one node, as a drain does it.
fn drain(node: &'static str, window: u64, grace: u64) -> PacedClose {
    closing(on_node(node), window, grace)
}

fn closing(selector: TunnelSelector, window: u64, grace: u64) -> PacedClose {
    let close = PacedClose::new(selector, CloseReason::Drained, 1012, "moved");
    close.over(Duration::from_millis(window)).with_grace(Duration::from_millis(grace))
}

fn on_node(node: &'static str) -> TunnelSelector {
    TunnelSelector::new(move |info| &*info.node_connection.node == node)
}

fn end(grace: u64) -> PacedClose {
    PacedClose { cause: CloseReason::Shutdown, ..closing(TunnelSelector::all(), 0, grace) }
}
