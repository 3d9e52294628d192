//! Tunnels that migrate to and fro under traffic: every message has a number and a hash over all before it.

use std::io::Write;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use super::peer::{Peer, PeerSender};
use super::{Arc, DEADLINE, PLAIN, Process, Suites, all_suites, channel, close, frame_of, suites};
use crate::affinity::hash::mix;
use crate::relay::CloseReason;

/// Migrations, of which each fourth is cancelled.
const ROUNDS: usize = 20;
/// Messages that arrive between two migrations.
const BETWEEN: usize = 60;

/// The messages of one direction; both peers make the same ones.
struct MessageStream {
    mask: Option<[u8; 4]>,
    number: u64,
    /// Over all payloads so far.
    hash: u64,
}

impl MessageStream {
    fn new(seed: u64, mask: Option<[u8; 4]>) -> Self {
        Self { mask, number: 0, hash: mix(seed) }
    }
}

impl Iterator for MessageStream {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let draw = mix(self.hash ^ 1) as usize;
        let len = match draw % 10 {
            0..5 => draw % 100,
            5..9 => draw % 3_000,
            _ => draw % 50_000,
        };
        let payload: Vec<u8> =
            self.number.to_be_bytes().into_iter().chain(self.hash.to_be_bytes().repeat(len / 8)).collect();
        self.number += 1;
        self.hash = mix(self.hash ^ payload.len() as u64);
        Some(frame_of(&payload, self.mask))
    }
}

/// Sends until it is stopped. Returns the numbers of bytes and messages.
fn speak(mut sender: PeerSender, messages: MessageStream, stop: Arc<AtomicBool>) -> JoinHandle<(u64, u64)> {
    std::thread::spawn(move || {
        let (mask, mut bytes, mut count) = (messages.mask, 0, 0);
        for message in messages {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if count % 16 == 15 {
                sender.renew();
            }
            sender.write_all(&message).unwrap();
            (bytes, count) = (bytes + message.len() as u64, count + 1);
        }
        let bye = close::encode_close(1000, "", mask);
        sender.write_all(&bye).unwrap();
        (bytes + bye.len() as u64, count)
    })
}

/// Receives every message in order, up to the Close.
fn listen(mut peer: Peer, messages: MessageStream, ticks: Sender<()>) -> JoinHandle<(Peer, u64)> {
    std::thread::spawn(move || {
        for (count, message) in messages.enumerate() {
            let first = peer.take(1);
            if first == [0x88] {
                return (peer, count as u64);
            }
            let heard = [first, peer.take(message.len() - 1)].concat();
            assert!(heard == message, "message {count} is not what was sent");
            let _ = ticks.send(());
        }
        unreachable!("there is no last message")
    })
}

/// A tunnel whose peers talk, each direction with a speaker and a listener.
struct Talk {
    speakers: [JoinHandle<(u64, u64)>; 2],
    listeners: [JoinHandle<(Peer, u64)>; 2],
}

impl Talk {
    fn begin(process: &Process, id: u64, suites: Suites, stop: &Arc<AtomicBool>, ticks: &Sender<()>) -> Self {
        let peers = process.tunnel(id, suites);
        let from_client = || MessageStream::new(2 * id, Some([id as u8, 2, 3, 4]));
        let from_node = || MessageStream::new(2 * id + 1, None);
        Self {
            speakers: [
                speak(peers.client.sender(), from_client(), Arc::clone(stop)),
                speak(peers.node.sender(), from_node(), Arc::clone(stop)),
            ],
            listeners: [
                listen(peers.node, from_client(), ticks.clone()),
                listen(peers.client, from_node(), ticks.clone()),
            ],
        }
    }

    /// Bytes and messages of both directions, once all was heard.
    fn end(self) -> [(u64, u64); 2] {
        let said = self.speakers.map(|speaker| speaker.join().unwrap());
        let heard = self.listeners.map(|listener| listener.join().unwrap());
        assert_eq!(said.map(|(_, messages)| messages), [heard[0].1, heard[1].1]);
        said
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_or_out_of_order_in_twenty_migrations_under_traffic() {
    let (mut here, mut there) = (Process::start(), Process::start());
    let (ticks, ticking) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let kinds = [vec![PLAIN; 3], all_suites()].concat();
    let talks: Vec<Talk> =
        (0..).zip(&kinds).map(|(id, kind)| Talk::begin(&here, id, *kind, &stop, &ticks)).collect();
    for round in 0..ROUNDS {
        while ticking.try_recv().is_ok() {}
        (0..BETWEEN).for_each(|_| ticking.recv_timeout(DEADLINE).expect("messages arrive"));
        let frozen = here.relay.freeze(usize::MAX).await;
        assert_eq!(frozen.len(), talks.len());
        let staged = there.stage(&frozen);
        if round % 4 == 3 {
            staged.discard();
            frozen.resume();
            continue;
        }
        frozen.release();
        there.relay.activate(staged);
        mem::swap(&mut here, &mut there);
    }
    stop.store(true, Ordering::Relaxed);
    let said: Vec<_> = talks.into_iter().map(Talk::end).collect();
    assert_eq!(suites().len(), 6);
    for _ in &said {
        let (id, end) = here.ends.recv_timeout(DEADLINE).expect("a tunnel ends");
        let said = said[id as usize];
        assert_eq!((end.code, end.reason), (1000, CloseReason::Closed));
        assert_eq!((end.bytes, end.messages), (said.map(|it| it.0), said.map(|it| it.1)));
    }
    there.assert_no_end();
    here.assert_no_end();
    here.end();
    there.end();
}
