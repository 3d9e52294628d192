//! A reader that does not read.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::harness::{Harness, soon};

/// More than the kernel's buffers on both sides and the balancer's own hold together.
const MOST: usize = 64 << 20;
/// Without room for this long, there is none.
const FULL: Duration = Duration::from_millis(500);

/// A binary frame whose every byte tells its number.
fn numbered(number: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 126, 0xff, 0xf0];
    frame.resize(4 + 0xfff0, (number % 251) as u8);
    frame
}

#[tokio::test]
async fn i10_what_a_slow_reader_does_not_take_is_bounded() {
    let harness = Harness::start("").await;
    let (mut client, node) = harness.open_tunnel().await;
    let (mut frame, mut number, mut sent, mut total) = (numbered(0), 0, 0, 0);
    while tokio::time::timeout(FULL, node.0.writable()).await.is_ok() {
        match node.0.try_write(&frame[sent..]) {
            Ok(len) => (sent, total) = (sent + len, total + len),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        if sent == frame.len() {
            number += 1;
            (frame, sent) = (numbered(number), 0);
        }
        assert!(total < MOST, "the balancer keeps taking what nobody reads");
    }
    let mut left = total;
    for number in 0.. {
        let expected = numbered(number);
        let expected = &expected[..expected.len().min(left)];
        let mut read = vec![0; expected.len()];
        soon(client.0.read_exact(&mut read)).await.unwrap();
        assert!(read == expected, "frame {number} is not what was sent");
        left -= expected.len();
        if left == 0 {
            break;
        }
    }
}
