//! Migrations in every state of a stream: in a header, in a frame, half closed, with a slow reader, in a close.

use std::io::Write;
use std::net::Shutdown;

use rustls::SupportedCipherSuite;

use super::{MASK, MigratedPeers, PLAIN, Process, all_suites, drain, frame_of, text};
use crate::metrics::CloseSide;
use crate::relay::{CloseReason, TunnelSelector};
use crate::ws::close;

#[tokio::test]
async fn a_header_and_a_frame_that_a_migration_splits_arrive_whole() {
    for suites in all_suites() {
        let message = frame_of(&[7; 300], MASK);
        // In the header, in the payload, at the last byte.
        for cut in [1, 3, 7, 8, 100, message.len() - 1] {
            let (old, new) = (Process::start(), Process::start());
            let mut peers = old.tunnel(1, suites);
            peers.client.write_all(&message[..cut]).unwrap();
            old.hand_over(&new).await;
            assert_eq!(
                new.relay.list_sessions(TunnelSelector::all(), None, 9).await[0].bytes,
                [cut as u64, 0]
            );
            peers.client.write_all(&message[cut..]).unwrap();
            peers.node.expect(&message);
            peers.talk("after");
            peers.part(1000);
            drop(peers);
            assert_eq!(new.next_end().1.messages, [2, 1]);
            old.end();
            new.end();
        }
    }
}

#[tokio::test]
async fn i6_a_close_that_waits_for_the_end_of_a_frame_migrates_with_the_tunnel() {
    for suites in [PLAIN, all_suites()[3]] {
        let (old, new) = (Process::start(), Process::start());
        let mut peers = old.tunnel(1, suites);
        let message = frame_of(&[7; 300], MASK);
        peers.client.write_all(&message[..100]).unwrap();
        assert!(old.relay.wait_one_tick().await);
        let handle = old.relay.close(drain(60_000));
        peers.client.expect(&close::encode_close(1012, "moved", None));
        old.hand_over(&new).await;
        // It is not this process's any more.
        handle.finished().await;
        peers.client.write_all(&[&message[100..], &text(b"dropped", MASK)].concat()).unwrap();
        peers.node.expect(&message);
        peers.node.expect(&[0x88]);
        peers.part(1012);
        let (_, end) = new.next_end();
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Balancer, 1012, CloseReason::Drained));
        old.assert_no_end();
        old.end();
        new.end();
    }
}

#[tokio::test]
async fn a_half_closed_tunnel_stays_half_closed() {
    for suites in all_suites() {
        // In TLS 1.2 a close_notify ends both directions.
        let is_12 = |suite: &Option<SupportedCipherSuite>| suite.is_some_and(|suite| suite.tls13().is_none());
        if suites.iter().any(is_12) {
            continue;
        }
        let (old, new) = (Process::start(), Process::start());
        let mut peers = old.tunnel(1, suites);
        peers.talk("before");
        peers.client.shut(Shutdown::Write);
        assert_eq!(peers.node.rest(), (vec![], true));
        old.hand_over(&new).await;
        let message = text(b"still open", None);
        peers.node.write_all(&message).unwrap();
        peers.client.expect(&message);
        peers.node.shut(Shutdown::Write);
        assert_eq!(peers.client.rest(), (vec![], true));
        let (_, end) = new.next_end();
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Client, 1006, CloseReason::Ended));
        old.end();
        new.end();
    }
}

#[tokio::test]
async fn a_stream_that_ends_while_its_tunnel_is_frozen_ends_in_the_new_process() {
    for suites in all_suites() {
        let (old, new) = (Process::start(), Process::start());
        let mut peers = old.tunnel(1, suites);
        let frozen = old.relay.freeze(usize::MAX).await;
        peers.client.write_all(&text(b"last words", MASK)).unwrap();
        peers.client.shut(Shutdown::Write);
        let staged = new.stage(&frozen);
        frozen.release();
        new.relay.activate(staged);
        assert_eq!(peers.node.rest(), (text(b"last words", MASK), true));
        peers.node.shut(Shutdown::Write);
        assert_eq!(peers.client.rest(), (vec![], true));
        assert_eq!(new.next_end().1.reason, CloseReason::Ended);
        old.end();
        new.end();
    }
}

#[tokio::test]
async fn i10_what_a_slow_reader_has_not_taken_migrates_with_the_tunnel() {
    for suites in all_suites() {
        let (old, new) = (Process::start(), Process::start());
        let mut peers = old.tunnel(1, suites);
        let message = frame_of(&[5; 30_000], None);
        let (mut sent, mut in_vain) = (0, 0);
        // Until nothing passes any more: the node's own socket is full, too.
        while in_vain < 50 {
            if peers.node.offer(&message) {
                (sent, in_vain) = (sent + 1, 0);
            }
            in_vain += 1;
            assert!(old.relay.wait_one_tick().await);
        }
        let frozen = old.relay.freeze(usize::MAX).await;
        let tunnel = frozen.tunnels().next().unwrap();
        assert!(tunnel.state().len() > 2_000, "{} bytes wait", tunnel.state().len());
        assert_eq!(format!("{tunnel:?}"), format!("FrozenTunnel(1, {} bytes hidden)", tunnel.state().len()));
        let staged = new.stage(&frozen);
        frozen.release();
        new.relay.activate(staged);
        // The client reads while the rest of the node's last message is written.
        let MigratedPeers { mut client, mut node } = peers;
        let node = std::thread::spawn(move || {
            node.complete();
            node
        });
        (0..=sent).for_each(|_| client.expect(&message));
        let mut peers = MigratedPeers { client, node: node.join().unwrap() };
        peers.talk("after");
        old.end();
        new.end();
    }
}
