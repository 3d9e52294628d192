//! TCP urgent data (RFC 6093) in the middle of a tunnel's traffic.

use rustix::net::{SendFlags, send};

use crate::harness::{Harness, RawStream};

/// A frame of a client's, with a payload that differs at each place.
fn masked(len: u16) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let payload = (0..len).map(|at| at.wrapping_mul(7) as u8);
    [0x82, 0xfe, high, low, 0, 0, 0, 0].into_iter().chain(payload).collect()
}

/// The same of a node's.
fn plain(len: u16) -> Vec<u8> {
    let masked = masked(len);
    [&[0x82, 0x7e], &masked[2..4], &masked[8..]].concat()
}

/// Sends `frame` with urgent data ending at each of `marks`.
fn send_urgent(peer: &RawStream, frame: &[u8], marks: &[usize]) {
    let mut at = 0;
    for mark in marks {
        send(&peer.0, &frame[at..*mark], SendFlags::OOB).unwrap();
        at = *mark;
    }
    send(&peer.0, &frame[at..], SendFlags::empty()).unwrap();
}

#[tokio::test]
async fn urgent_data_in_the_midst_of_traffic_arrives_in_its_place_and_stalls_no_tunnel() {
    let harness = Harness::start("").await;
    let mut tunnels = Vec::new();
    for _ in 0..40 {
        tunnels.push(harness.open_tunnel().await);
    }
    let (to_node, to_client) = (masked(1500), plain(1500));
    for round in 0..10 {
        let marks = [1 + round, 700, 701 + round, 1400];
        for (client, node) in &tunnels {
            send_urgent(client, &to_node, &marks[..1 + round % 4]);
            send_urgent(node, &to_client, &marks[round % 4..]);
        }
        for (client, node) in &mut tunnels {
            node.expect(&to_node).await;
            client.expect(&to_client).await;
        }
    }
}
