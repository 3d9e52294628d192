//! Pings to quiet clients, and clients that do not answer.

use super::*;

#[tokio::test]
async fn a_quiet_client_gets_a_ping_and_its_pong_never_reaches_the_node() {
    let stage = Stage::set(1);
    let ping_interval = Some(Duration::from_millis(1));
    let limits = TunnelLimits { ping_interval, ..LIMITS };
    let mut peers = stage.tunnel_with(1, "ws1", limits);
    for _ in 0..2 {
        let asked = read(&mut peers.client, 10);
        assert_eq!(asked[..2], [0x89, 8]);
        let pong = frame(frame::opcode::PONG, &asked[2..], Some([5, 6, 7, 8]));
        peers.client.write_all(&pong[..7]).unwrap();
        peers.client.write_all(&pong[7..]).unwrap();
        peers.say("behind it");
    }
    let session = stage.relay.list_sessions(TunnelSelector::all(), None, 1).await.remove(0);
    assert!(session.round_trip.is_some());
    assert_eq!((session.bytes[0], session.messages[0]), (2 * (14 + 15), 2));
    stage.end();
}

#[tokio::test]
async fn an_unresponsive_client_is_closed_and_the_node_gets_a_close() {
    let stage = Stage::set(1);
    let ping_interval = Some(Duration::from_millis(1));
    let limits = TunnelLimits { ping_interval, ..LIMITS };
    let mut peers = stage.tunnel_with(1, "ws1", limits);
    assert_eq!(close_code(&mut peers.node), 1001);
    peers.node.write_all(&close::encode_close(1001, "", None)).unwrap();
    let (_, end) = stage.next_end();
    assert_eq!((end.side, end.code, end.reason), (CloseSide::Client, 1006, CloseReason::Silent));
    assert_eq!(read(&mut peers.client, 10)[..2], [0x89, 8]);
    assert_eq!(close_code(&mut peers.client), 1001);
    assert_eq!(peers.client.read(&mut [0]).unwrap(), 0);
    stage.end();
}

#[test]
fn a_client_that_takes_nothing_is_unresponsive_whatever_the_node_sends() {
    let stage = Stage::set(1);
    let ping_interval = Some(Duration::from_millis(1));
    let limits = TunnelLimits { ping_interval, ..LIMITS };
    let mut peers = stage.tunnel_with(1, "ws1", limits);
    peers.node.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let news = frame(2, &[0; 100], None);
    while peers.node.write_all(&news).is_ok() {}
    assert_eq!(close_code(&mut peers.node), 1001);
    drop(peers.node);
    assert_eq!(stage.next_end().1.reason, CloseReason::Silent);
    stage.end();
}

#[test]
fn pongs_of_our_own_do_not_keep_an_idle_tunnel_open() {
    let stage = Stage::set(1);
    let limits = TunnelLimits {
        idle_timeout: Duration::from_millis(2_500),
        ping_interval: Some(Duration::from_millis(1)),
        ..LIMITS
    };
    let mut peers = stage.tunnel_with(1, "ws1", limits);
    loop {
        let head = read(&mut peers.client, 2);
        let payload = read(&mut peers.client, usize::from(head[1]));
        if head[0] == 0x88 {
            assert_eq!(payload[2..], *b"idle");
            break;
        }
        peers.client.write_all(&frame(frame::opcode::PONG, &payload, Some([5; 4]))).unwrap();
    }
    drop(peers);
    assert_eq!(stage.next_end().1.reason, CloseReason::Idle);
    stage.end();
}

#[test]
fn a_client_that_has_closed_or_ended_its_stream_gets_no_ping() {
    let stage = Stage::set(1);
    let ping_interval = Some(Duration::from_millis(1));
    let limits = TunnelLimits { idle_timeout: Duration::from_millis(2_500), ping_interval, ..LIMITS };
    let (mut closed, mut ended) = (stage.tunnel_with(1, "ws1", limits), stage.tunnel_with(2, "ws1", limits));
    closed.client.write_all(&close::encode_close(1000, "", Some([1; 4]))).unwrap();
    ended.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((close_code(&mut closed.client), close_code(&mut ended.client)), (1001, 1001));
    stage.end();
}
