//! A connection and rustls understand each other, and rustls is told what is wrong.

use std::io::{Read, Write};

use proptest::prelude::*;
use rustls::{Connection, SupportedCipherSuite};

use super::*;
use crate::relay::tls::tests::{meet, suites};

/// rustls as the peer, and a connection that has left it.
struct Rig {
    peer: Connection,
    tls: TlsConnection,
}

impl Rig {
    fn new(suite: SupportedCipherSuite, role: TlsRole) -> Self {
        let (peer, departed) = meet(suite, role);
        Self { peer, tls: *TlsConnection::new(departed, role).0 }
    }

    fn peer_sends(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut wire).unwrap();
        }
        wire
    }

    fn peer_reads(&mut self, mut wire: &[u8]) -> (Vec<u8>, Result<(), rustls::Error>) {
        let (mut read, mut end) = (Vec::new(), Ok(()));
        while !wire.is_empty() && end.is_ok() {
            self.peer.read_tls(&mut wire).unwrap();
            end = self.peer.process_new_packets().map(|_| ());
            // No data now is an error of this reader, and none here.
            let _ = self.peer.reader().read_to_end(&mut read);
        }
        (read, end)
    }
}

#[derive(Debug, Clone)]
enum TlsStep {
    PeerSends(usize),
    WeSend(usize),
    PeerUpdates,
    WeUpdate,
}

fn act() -> impl Strategy<Value = TlsStep> {
    let size = prop_oneof![1usize..200, 16_380usize..16_400, 1usize..70_000];
    prop_oneof![
        4 => size.clone().prop_map(TlsStep::PeerSends),
        4 => size.prop_map(TlsStep::WeSend),
        1 => Just(TlsStep::PeerUpdates),
        1 => Just(TlsStep::WeUpdate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn rustls_and_a_connection_understand_each_other(
        suite in 0..6usize,
        is_server: bool,
        acts in prop::collection::vec(act(), 1..12),
        cut in 1usize..40_000,
        bit in 0usize..400,
        politely: bool,
    ) {
        let suite = suites()[suite];
        let mut rig = Rig::new(suite, if is_server { TlsRole::Server } else { TlsRole::Client });
        for (number, act) in acts.iter().enumerate() {
            let bytes = |len: usize| vec![number as u8; len];
            match *act {
                TlsStep::PeerSends(len) => {
                    rig.peer.writer().write_all(&bytes(len)).unwrap();
                    let wire = rig.peer_sends();
                    let heard = wire.chunks(cut).map(|piece| receive(&mut rig.tls, piece)).collect::<Vec<_>>();
                    let plain = heard.iter().flat_map(|(plain, _)| plain.clone()).collect::<Vec<_>>();
                    prop_assert_eq!(plain, bytes(len));
                    for (_, answer) in heard {
                        prop_assert_eq!(rig.peer_reads(&answer), (vec![], Ok(())));
                    }
                }
                TlsStep::WeSend(len) => {
                    let wire = sealed(&mut rig.tls, &bytes(len));
                    prop_assert_eq!(rig.peer_reads(&wire), (bytes(len), Ok(())));
                }
                TlsStep::PeerUpdates if suite.tls13().is_some() => rig.peer.refresh_traffic_keys().unwrap(),
                TlsStep::WeUpdate if suite.tls13().is_some() => {
                    let wire = update(&mut rig.tls);
                    prop_assert_eq!(rig.peer_reads(&wire), (vec![], Ok(())));
                }
                _ => {}
            }
        }
        let rest = rig.peer_sends();
        let (_, answer) = receive(&mut rig.tls, &rest);
        prop_assert_eq!(rig.peer_reads(&answer).1, Ok(()));
        if politely {
            rig.peer.send_close_notify();
            let wire = rig.peer_sends();
            prop_assert_eq!(receive(&mut rig.tls, &wire), (vec![], vec![]));
            prop_assert_eq!(rig.tls.receive_state(), ReceiveState::CloseNotify);
            let mut bye = Vec::new();
            rig.tls.close(&mut bye);
            prop_assert_eq!(rig.peer_reads(&bye), (vec![], Ok(())));
            prop_assert_eq!(rig.peer.reader().read(&mut [0; 1]).ok(), Some(0));
        } else {
            rig.peer.writer().write_all(&[7; 60]).unwrap();
            let mut wire = rig.peer_sends();
            // In what is protected, so that a whole record is there and wrong.
            let at = 40 + bit % (8 * (wire.len() - 5));
            wire[at / 8] ^= 1 << (at % 8);
            let (plain, alert) = receive(&mut rig.tls, &wire);
            prop_assert_eq!((plain, rig.tls.receive_state()), (vec![], ReceiveState::Failed(RecordError::BadRecord)));
            let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
            prop_assert_eq!(rig.peer_reads(&alert), (vec![], Err(told)));
        }
    }
}
