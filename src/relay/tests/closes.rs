//! Paced closes of real tunnels.

use super::*;

#[tokio::test]
async fn a_close_of_one_nodes_tunnels_leaves_the_others_and_the_threads() {
    let stage = Stage::set(3);
    let mut leaving: Vec<Peers> = (0..7).map(|id| stage.tunnel(id, "ws1")).collect();
    let mut staying: Vec<Peers> = (7..12).map(|id| stage.tunnel(id, "ws2")).collect();
    let handle = stage.relay.close(drain("ws1", 50, 60_000));
    assert_eq!(handle.counted().await, 7);
    let mut late = stage.tunnel(12, "ws1");
    leaving.iter_mut().for_each(|peers| peers.part(1012));
    handle.finished().await;
    assert_eq!((handle.selected(), handle.left(), handle.closed()), (7, 0, 7));
    for _ in 0..7 {
        let (id, end) = stage.next_end();
        assert!(id < 7);
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Balancer, 1012, CloseReason::Drained));
    }
    staying.iter_mut().for_each(|peers| peers.say("still here"));
    late.say("came later");
    assert_eq!(stage.relay.tunnel_count(), 6);
    stage.end();
}

#[tokio::test]
async fn i11_a_close_that_nobody_answers_ends_by_its_deadline() {
    let stage = Stage::set(2);
    let peers: Vec<Peers> = (0..40).map(|id| stage.tunnel(id, "ws1")).collect();
    let handle = stage.relay.close(closing(TunnelSelector::all(), 60, 40));
    handle.finished().await;
    assert_eq!((handle.selected(), stage.relay.tunnel_count()), (40, 0));
    for mut peers in peers {
        assert_eq!((close_code(&mut peers.client), close_code(&mut peers.node)), (1012, 1012));
        assert_eq!((peers.client.read(&mut [0]).unwrap(), peers.node.read(&mut [0]).unwrap()), (0, 0));
    }
    stage.end();
}

#[tokio::test]
async fn one_session_is_killed_and_an_unknown_one_is_counted_as_none() {
    let stage = Stage::set(2);
    let (mut one, mut other) = (stage.tunnel(u64::MAX, "ws1"), stage.tunnel(5, "ws1"));
    let kill = |id: u64| PacedClose {
        cause: CloseReason::Killed,
        ..closing(TunnelSelector::sessions([id].into()), 0, 60_000)
    };
    assert_eq!(stage.relay.close(kill(4)).counted().await, 0);
    let handle = stage.relay.close(kill(u64::MAX));
    assert_eq!(handle.counted().await, 1);
    one.part(1012);
    handle.finished().await;
    let (id, end) = stage.next_end();
    assert_eq!((id, end.reason), (u64::MAX, CloseReason::Killed));
    other.say("untouched");
    stage.end();
}

#[tokio::test]
async fn a_tunnel_that_ends_by_itself_is_not_left_to_a_close() {
    let stage = Stage::set(1);
    let peers: Vec<Peers> = (0..3).map(|id| stage.tunnel(id, "ws1")).collect();
    let first = stage.relay.close(closing(TunnelSelector::all(), 3_600_000, 0));
    assert_eq!(first.counted().await, 3);
    // One is due at the start of each window, the others much later.
    assert_eq!(stage.next_end().1.reason, CloseReason::Drained);
    let second = stage.relay.close(drain("ws1", 3_600_000, 0));
    assert_eq!(second.counted().await, 2);
    assert_eq!(stage.next_end().1.reason, CloseReason::Drained);
    // The thread answers when the tick that ended it is over.
    assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 9).await.len(), 1);
    assert_eq!((first.left(), second.left()), (1, 1));
    drop(peers);
    assert_ne!(stage.next_end().1.side, CloseSide::Balancer);
    first.finished().await;
    second.finished().await;
    stage.end();
}

#[tokio::test]
async fn a_shutdown_overtakes_a_close_and_includes_late_tunnels() {
    let stage = Stage::set(2);
    let _peers: Vec<Peers> = (0..6).map(|id| stage.tunnel(id, "ws1")).collect();
    let handle = stage.relay.close(drain("ws1", 3_600_000, 3_600_000));
    assert_eq!(handle.counted().await, 6);
    stage.relay.shut_down(end(60_000));
    let mut late = stage.tunnel(6, "ws1");
    late.part(1012);
    stage.relay.shut_down(end(0));
    stage.relay.join();
    handle.finished().await;
    let ends: Vec<_> = stage.ends.try_iter().collect();
    assert_eq!(ends.len(), 7);
    // One was due at the start of the window.
    let drained = ends.iter().filter(|(_, end)| end.reason == CloseReason::Drained).count();
    let shut = ends.iter().filter(|(_, end)| end.reason == CloseReason::Shutdown).count();
    assert_eq!((drained, shut), (1, 6), "{ends:?}");
    let gone = stage.relay.close(drain("ws1", 0, 0));
    assert_eq!(gone.counted().await, 0);
    assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 10).await, []);
}

#[tokio::test]
async fn the_quietest_are_chosen_and_then_they_alone_are_closed() {
    let stage = Stage::set(2);
    let mut peers: Vec<Peers> = (0..6).map(|id| stage.tunnel(id, ["ws1", "ws2"][id as usize / 5])).collect();
    peers[4].say("busy");
    let choose = |order, limit| {
        let selector = TunnelSelector::new(|info| &*info.node_connection.node == "ws1" && info.id != 2);
        stage.relay.choose(TunnelChoice { selector, order }, limit)
    };
    let mut quietest = Vec::new();
    // The first message may come in the millisecond in which the others were adopted.
    for _ in 0..1000 {
        quietest = choose(ChoiceOrder::Quietest, 3).await;
        // Among themselves they are as quiet as their threads are old.
        quietest.sort_unstable();
        if quietest == [0, 1, 3] {
            break;
        }
        peers[4].say("busy");
    }
    assert_eq!(quietest, [0, 1, 3]);
    let any = choose(ChoiceOrder::Shuffled(7), 9).await;
    assert_eq!(any, choose(ChoiceOrder::Shuffled(7), 9).await);
    assert_eq!(any.iter().sum::<u64>(), 8);
    let selector = TunnelSelector::sessions([1, 3].into());
    let close = PacedClose { cause: CloseReason::Rebalanced, ..closing(selector, 0, 60_000) };
    let handle = stage.relay.close(close);
    assert_eq!(handle.counted().await, 2);
    assert_eq!(close_code(&mut peers[1].client), 1012);
    let mut left = choose(ChoiceOrder::Quietest, 9).await;
    left.sort_unstable();
    assert_eq!(left, [0, 4], "those that are being closed are not chosen again");
    for id in [3, 1] {
        drop(peers.swap_remove(id));
    }
    assert_eq!([stage.next_end().1.reason, stage.next_end().1.reason], [CloseReason::Rebalanced; 2]);
    stage.end();
}
