//! Half-ended tunnels, the ends of threads, and what is counted.

use super::*;

/// A pool whose half-ended tunnels have a second.
const SHORT: TunnelLimits = TunnelLimits { close_timeout: Duration::from_secs(1), ..LIMITS };

#[test]
fn a_half_ended_tunnel_with_a_full_socket_ends_by_the_close_timeout() {
    let stage = Stage::set(1);
    for id in [0, 1] {
        let mut peers = stage.tunnel_with(id, "ws1", SHORT);
        let (peer, side) = match id {
            0 => (&mut peers.client, CloseSide::Client),
            _ => (&mut peers.node, CloseSide::Node),
        };
        peer.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let news = frame(2, &[0; 100], (id == 0).then_some([0; 4]));
        while peer.write_all(&news).is_ok() {}
        peer.shutdown(Shutdown::Write).unwrap();
        let (ended, end) = stage.next_end();
        assert_eq!((ended, end.side, end.code), (id, side, 1006));
        assert_eq!(end.reason, CloseReason::CloseTimeout);
        drop(peers);
    }
    stage.end();
}

#[test]
fn a_tunnel_that_is_adopted_with_a_close_has_the_close_timeout() {
    let stage = Stage::set(1);
    let (mut tunnel, mut peers) = stage.new_tunnel(1, "ws1", SHORT);
    tunnel.from_node = close::encode_close(3000, "", None).into();
    assert!(stage.relay.adopt(tunnel));
    assert_eq!(close_code(&mut peers.client), 3000);
    let (_, end) = stage.next_end();
    assert_eq!((end.side, end.code, end.reason), (CloseSide::Node, 3000, CloseReason::CloseTimeout));
    assert!(end.duration >= Duration::from_secs(1));
    assert_eq!((peers.client.read(&mut [0]).unwrap(), peers.node.read(&mut [0]).unwrap()), (0, 0));
    stage.end();
}

#[test]
fn i7_a_tunnel_that_is_adopted_after_the_shutdown_has_its_end() {
    let stage = Stage::set(1);
    stage.relay.shut_down(end(0));
    stage.relay.join();
    let meter = stage.metrics.node("chat", "a");
    let (tunnel, _peers) = stage.new_tunnel(7, "a", LIMITS);
    assert!(!stage.relay.adopt(tunnel));
    let (id, end) = stage.next_end();
    assert_eq!((id, end.side, end.code, end.reason), (7, CloseSide::Balancer, 1001, CloseReason::Shutdown));
    assert_eq!((meter.live(), stage.relay.tunnel_count()), (0, 0));
}

#[tokio::test]
async fn what_was_relayed_is_in_the_metrics_while_a_tunnel_runs_and_after_it() {
    let stage = Stage::set(2);
    let mut peers = stage.tunnel(1, "ws1");
    let is_exact = || {
        let text = stage.metrics.render();
        let lines = [
            "mainstay_bytes_total{pool=\"chat\",direction=\"in\"} 33\n",
            "mainstay_messages_total{pool=\"chat\",direction=\"in\",kind=\"text\"} 3\n",
        ];
        lines.iter().all(|line| text.contains(line))
    };
    for _ in 0..3 {
        peers.say("hello");
    }
    // The thread answers when the tick that relayed the last of them is over.
    assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 1).await[0].messages, [3, 0]);
    assert!(is_exact());
    drop(peers);
    let (_, end) = stage.next_end();
    assert_eq!((end.bytes[0], end.messages[0]), (33, 3));
    assert!(is_exact());
    stage.end();
}

#[tokio::test]
async fn idle_threads_tick_when_asked_and_ended_ones_do_not() {
    let observer: CloseObserver = Arc::new(|_, _| {});
    let relay = Relay::start(3, &observer).unwrap();
    assert!(relay.wait_one_tick().await);
    let unanswered = relay.wait_one_tick();
    relay.shut_down(end(0));
    relay.join();
    assert!(!relay.wait_one_tick().await);
    drop(unanswered);
}
