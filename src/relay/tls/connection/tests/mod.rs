//! A connection against another one of its kind, and against rustls.

mod against_rustls;

use super::post_handshake::{CLIENT_HELLO, KEY_UPDATE, TICKET};
use super::*;
use crate::net::tls::extracted::{CipherSuite, TrafficKeys};
use crate::net::tls::key_schedule::key_and_iv;
use crate::relay::tls::tests::departed;

const ALL: [(TlsProtocolVersion, CipherSuite); 6] = [
    (TlsProtocolVersion::Tls13, CipherSuite::Aes128Gcm),
    (TlsProtocolVersion::Tls13, CipherSuite::Aes256Gcm),
    (TlsProtocolVersion::Tls13, CipherSuite::Chacha20Poly1305),
    (TlsProtocolVersion::Tls12, CipherSuite::Aes128Gcm),
    (TlsProtocolVersion::Tls12, CipherSuite::Aes256Gcm),
    (TlsProtocolVersion::Tls12, CipherSuite::Chacha20Poly1305),
];
const TLS_13: (TlsProtocolVersion, CipherSuite) = ALL[0];
const TLS_12: (TlsProtocolVersion, CipherSuite) = ALL[3];

fn keys(suite: CipherSuite, seed: u8) -> TrafficKeys {
    let secret = [seed; 48];
    let (key, iv) = key_and_iv(suite, &secret);
    TrafficKeys { secret, key: *key, iv: *iv, seq: 7 }
}

/// The two ends of one connection: that of a client, and ours.
fn twins(how: (TlsProtocolVersion, CipherSuite)) -> (TlsConnection, TlsConnection) {
    let (client, server) = (|| keys(how.1, 1), || keys(how.1, 2));
    let peer = TlsConnection::new(departed(how, client(), server()), TlsRole::Client).0;
    (*peer, *TlsConnection::new(departed(how, server(), client()), TlsRole::Server).0)
}

/// What `tls` makes of `wire`: plaintext, and its answer.
fn receive(tls: &mut TlsConnection, wire: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut plain, mut out, mut room) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
    let mut wire = [tls.partial_record(), wire].concat();
    loop {
        let len = tls.open(&wire, &mut room, &mut out);
        plain.extend_from_slice(&room[..len]);
        if !tls.has_unopened() {
            tls.send_owed_key_update(&mut out);
            return (plain, out);
        }
        wire = tls.partial_record().to_vec();
    }
}

fn sealed(tls: &mut TlsConnection, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    tls.seal(plain, &mut out);
    out
}

/// One record with this type and content, whatever they are.
fn raw(tls: &mut TlsConnection, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    tls.tx.seal(tls.cipher, kind, content, &mut out);
    out
}

/// The alert in `wire`, as `tls` decrypts it.
fn alert_in(tls: &mut TlsConnection, wire: &[u8]) -> Vec<u8> {
    let mut room = [0; 64];
    let (kind, len) = tls.rx.open(tls.cipher, wire, &mut room).expect("one record that decrypts");
    assert_eq!(kind, content_type::ALERT);
    room[..len].to_vec()
}

/// Asserts that what `wrong` makes is `fault`, and that the peer gets the alert.
fn fails(
    how: (TlsProtocolVersion, CipherSuite),
    fault: RecordError,
    wrong: impl FnOnce(&mut TlsConnection) -> Vec<u8>,
) {
    let (mut peer, mut tls) = twins(how);
    let wire = [sealed(&mut peer, b"before"), wrong(&mut peer), sealed(&mut peer, b"behind")].concat();
    let (plain, out) = receive(&mut tls, &wire);
    assert_eq!((&plain[..], tls.receive_state()), (&b"before"[..], ReceiveState::Failed(fault)), "{how:?}");
    match fault.alert() {
        Some(alert) => assert_eq!(alert_in(&mut peer, &out), alert, "{how:?}"),
        None => assert_eq!(out, b""),
    }
    assert_eq!(sealed(&mut tls, b"after"), b"", "nothing goes behind a fatal alert");
    assert_eq!(receive(&mut tls, &sealed(&mut peer, b"more")), (vec![], vec![]));
}

#[test]
fn an_idle_connection_takes_less_than_400_bytes_with_its_box() {
    assert!(size_of::<TlsConnection>() + 16 <= 400, "{}", size_of::<TlsConnection>());
}

#[test]
fn nothing_that_is_printed_has_a_key_in_it() {
    let (peer, tls) = twins(TLS_13);
    let text = format!("{peer:?} {tls:?}");
    assert!(text.contains("tx: RecordCipher(hidden), rx: RecordCipher(hidden)"), "{text}");
    let key = format!("{:?}", &keys(TLS_13.1, 1).key[..3]);
    assert!(!text.contains(key.trim_matches(['[', ']'])), "{text}");
}

#[test]
fn bytes_pass_in_every_size_whole_or_one_by_one() {
    for how in ALL {
        let (mut peer, mut tls) = twins(how);
        for len in [1, 2, 1024, 16_383, 16_384, 16_385, 40_000] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let wire = sealed(&mut peer, &bytes);
            assert_eq!(receive(&mut tls, &wire), (bytes.clone(), vec![]), "{how:?} {len}");
            let wire = sealed(&mut tls, &bytes);
            let pieces = wire.chunks(if len > 1024 { 1000 } else { 1 });
            let read: Vec<u8> = pieces.flat_map(|piece| receive(&mut peer, piece).0).collect();
            assert_eq!(read, bytes, "{how:?} {len}");
            assert_eq!((peer.partial.capacity(), tls.partial.capacity()), (0, 0));
        }
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    for how in ALL {
        let wire = sealed(&mut twins(how).0, b"a message");
        for bit in 0..8 * wire.len() {
            let (_, mut tls) = twins(how);
            let mut wire = wire.clone();
            wire[bit / 8] ^= 1 << (bit % 8);
            let (plain, _) = receive(&mut tls, &wire);
            let waits = tls.receive_state() == ReceiveState::Open && tls.partial_record() == wire;
            assert!(
                plain.is_empty() && (waits || tls.receive_state() != ReceiveState::Open),
                "{how:?} {bit}"
            );
        }
    }
}

#[test]
fn a_replayed_a_lost_and_a_shortened_record_are_found() {
    for how in ALL {
        fails(how, RecordError::BadRecord, |peer| {
            sealed(peer, b"lost");
            sealed(peer, b"next")
        });
        fails(how, RecordError::BadRecord, |_| {
            vec![23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        });
        let (mut peer, mut tls) = twins(how);
        let once = sealed(&mut peer, b"once");
        assert_eq!(receive(&mut tls, &once).0, b"once");
        let (plain, out) = receive(&mut tls, &once);
        assert_eq!((plain, tls.receive_state()), (vec![], ReceiveState::Failed(RecordError::BadRecord)));
        assert_eq!(alert_in(&mut peer, &out), [2, 20]);
    }
}

#[test]
fn what_is_no_tls_and_what_is_not_allowed_is_alerted_and_ends_it() {
    for how in ALL {
        fails(how, RecordError::NotTls, |_| b"GET / HTTP/1.1\r\n".to_vec());
        fails(how, RecordError::Unexpected, |_| vec![20, 3, 3, 0, 1, 1]);
        fails(how, RecordError::TooLong, |_| vec![23, 3, 3, 0xff, 0xff]);
        fails(how, RecordError::TooLong, |peer| raw(peer, content_type::DATA, &[0; MAX_PLAINTEXT + 1]));
        fails(how, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &[20, 0, 0, 0]));
        fails(how, RecordError::AlertReceived, |peer| raw(peer, content_type::ALERT, &[2, 40]));
        fails(how, RecordError::NotTls, |peer| raw(peer, content_type::ALERT, &[1]));
        fails(how, RecordError::IllegalValue, |peer| raw(peer, content_type::ALERT, &[9, 9]));
    }
    fails(TLS_13, RecordError::Unexpected, |_| vec![21, 3, 3, 0, 2, 1, 0]);
    fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, 0, &[0; 20]));
    fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, 24, b"heartbeat"));
    fails(TLS_13, RecordError::AlertReceived, |peer| {
        raw(peer, content_type::ALERT, &alert::NO_RENEGOTIATION)
    });
}

#[test]
fn padding_is_taken_off() {
    let (mut peer, mut tls) = twins(TLS_13);
    let padded = raw(&mut peer, 0, &[b"padded", &[content_type::DATA][..], &[0; 900]].concat());
    assert_eq!(receive(&mut tls, &padded), (b"padded".to_vec(), vec![]));
}

#[test]
fn key_updates_are_followed_and_answered_once_under_the_old_key() {
    let (mut peer, mut tls) = twins(TLS_13);
    let ask = [KEY_UPDATE, 0, 0, 1, 1];
    let mut wire = Vec::new();
    for _ in 0..3 {
        wire.extend(raw(&mut peer, content_type::HANDSHAKE, &ask));
        peer.tx.update_keys(peer.cipher.suite);
    }
    wire.extend(sealed(&mut peer, b"with the fourth key"));
    let (plain, answer) = receive(&mut tls, &wire);
    assert_eq!((&plain[..], answer.len()), (&b"with the fourth key"[..], 5 + 5 + 1 + 16));
    let behind = sealed(&mut tls, b"with the second key");
    assert_eq!(receive(&mut peer, &[answer, behind].concat()).0, b"with the second key");
    assert!(!peer.owes_key_update, "the answer asks for nothing");
}

#[test]
fn an_invalid_key_update_is_refused() {
    fails(TLS_13, RecordError::IllegalValue, |peer| {
        raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2])
    });
    fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 0]));
    fails(TLS_13, RecordError::Unexpected, |peer| {
        raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0].repeat(2))
    });
    fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0]));
    fails(TLS_12, RecordError::Unexpected, |peer| {
        raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])
    });
}

fn update(peer: &mut TlsConnection) -> Vec<u8> {
    let mut out = Vec::new();
    peer.send_key_update(&mut out);
    out
}

#[test]
fn floods_without_data_end_it_and_data_resets_the_count() {
    let (mut peer, mut tls) = twins(TLS_13);
    for _ in 0..3 {
        let flood: Vec<u8> = (0..MAX_WITHOUT_DATA).flat_map(|_| update(&mut peer)).collect();
        assert_eq!(receive(&mut tls, &flood), (vec![], vec![]));
        let empty: Vec<u8> =
            (0..MAX_WITHOUT_DATA).flat_map(|_| raw(&mut peer, content_type::DATA, b"")).collect();
        assert_eq!(receive(&mut tls, &empty), (vec![], vec![]));
        assert_eq!(receive(&mut tls, &sealed(&mut peer, b"x")).0, b"x");
    }
    fails(TLS_13, RecordError::Unexpected, |peer| {
        (0..=MAX_WITHOUT_DATA).flat_map(|_| update(peer)).collect()
    });
    for how in ALL {
        fails(how, RecordError::Unexpected, |peer| {
            (0..=MAX_WITHOUT_DATA).flat_map(|_| raw(peer, content_type::DATA, b"")).collect()
        });
        let canceled = |peer: &mut TlsConnection| raw(peer, content_type::ALERT, &[1, 90]);
        fails(how, RecordError::Unexpected, |peer| (0..=MAX_WARNINGS).flat_map(|_| canceled(peer)).collect());
    }
}

#[test]
fn an_own_key_update_comes_before_the_keys_are_used_up() {
    for how in ALL.into_iter().filter(|how| how.0 == TlsProtocolVersion::Tls13) {
        let (mut peer, mut tls) = twins(how);
        tls.limit = 10;
        let first = tls.tx.seq();
        for number in 0..200u8 {
            assert_eq!(receive(&mut peer, &sealed(&mut tls, &[number])).0, [number]);
            assert!(tls.tx.seq() <= tls.limit && !tls.is_near_key_limit() && !tls.is_at_key_limit());
        }
        assert_ne!(tls.tx.seq(), first + 200);
        assert!(!peer.owes_key_update);
    }
    let (_, tls) = twins(TLS_13);
    assert_eq!(tls.limit, 1 << 24);
}

#[test]
fn tls_12_sends_close_notify_at_its_key_limit() {
    let (mut peer, mut tls) = twins(TLS_12);
    for at in [&mut tls.tx, &mut peer.rx] {
        let mut worn = keys(TLS_12.1, 2);
        worn.seq = (1 << 24) - KEY_LIMIT_MARGIN - 1;
        *at = RecordCipher::new(worn);
    }
    assert!(!tls.is_near_key_limit());
    assert_eq!(receive(&mut peer, &sealed(&mut tls, b"x")).0, b"x");
    assert!(tls.is_near_key_limit() && !tls.is_at_key_limit());
    tls.limit = tls.tx.seq() + 1;
    let last = sealed(&mut tls, &[7; 3 * MAX_PLAINTEXT]);
    assert_eq!(receive(&mut peer, &last).0, [7; MAX_PLAINTEXT]);
    assert_eq!(peer.receive_state(), ReceiveState::CloseNotify);
    assert!(tls.is_at_key_limit());
    assert_eq!(sealed(&mut tls, b"x"), b"");
}

#[test]
fn close_notify_closes_a_direction_for_good() {
    for how in ALL {
        let (mut peer, mut tls) = twins(how);
        let mut bye = Vec::new();
        peer.close(&mut bye);
        let once = bye.len();
        peer.close(&mut bye);
        assert_eq!((bye.len(), sealed(&mut peer, b"late")), (once, vec![]));
        let wire = [&bye[..], b"what is not TLS any more"].concat();
        assert_eq!(receive(&mut tls, &wire), (vec![], vec![]));
        tls.end_of_stream();
        assert_eq!((tls.receive_state(), tls.partial_record()), (ReceiveState::CloseNotify, &b""[..]));
        assert_eq!(tls.must_answer_close_notify(), how.0 == TlsProtocolVersion::Tls12);
        let answer = sealed(&mut tls, b"the other direction is open");
        assert_eq!(receive(&mut peer, &answer).0, b"the other direction is open");
    }
}

#[test]
fn an_end_without_close_notify_is_a_truncation() {
    let (mut peer, mut tls) = twins(TLS_13);
    receive(&mut tls, &sealed(&mut peer, b"half of it")[..12]);
    tls.end_of_stream();
    assert_eq!(tls.receive_state(), ReceiveState::Truncated);
    assert_eq!(tls.partial.capacity(), 0);
}

#[test]
fn renegotiation_is_refused_once() {
    let hello = [CLIENT_HELLO, 0, 0, 1, 0];
    let (mut peer, mut tls) = twins(TLS_12);
    let (_, out) = receive(&mut tls, &raw(&mut peer, content_type::HANDSHAKE, &hello));
    assert_eq!(alert_in(&mut peer, &out), alert::NO_RENEGOTIATION);
    assert_eq!(receive(&mut tls, &sealed(&mut peer, b"goes on")).0, b"goes on");
    receive(&mut tls, &raw(&mut peer, content_type::HANDSHAKE, &hello));
    assert_eq!(tls.receive_state(), ReceiveState::Failed(RecordError::Unexpected));
    // From a node it is a HelloRequest.
    let (mut node_side, mut node) = twins(TLS_12);
    let (_, out) = receive(&mut node_side, &raw(&mut node, content_type::HANDSHAKE, &[0, 0, 0, 0]));
    assert_eq!(alert_in(&mut node, &out), alert::NO_RENEGOTIATION);
}

#[test]
fn tickets_are_taken_from_nodes_only() {
    let ticket = [TICKET, 0, 0, 3, 1, 2, 3];
    fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &ticket));
    let (mut tls, mut node) = twins(TLS_13);
    let wire = [
        raw(&mut node, content_type::HANDSHAKE, &ticket),
        raw(&mut node, content_type::HANDSHAKE, &ticket.repeat(2)),
        sealed(&mut node, b"data"),
    ];
    assert_eq!(receive(&mut tls, &wire.concat()), (b"data".to_vec(), vec![]));
    receive(&mut tls, &raw(&mut node, content_type::HANDSHAKE, &[&ticket[..], &[4, 0, 0, 9, 1]].concat()));
    assert_eq!(tls.receive_state(), ReceiveState::Failed(RecordError::Unexpected));
}

#[test]
fn records_that_came_with_the_connection_are_opened_without_the_socket() {
    let (mut peer, _) = twins(TLS_13);
    let records: Vec<u8> = (0..9).flat_map(|_| sealed(&mut peer, &[5; 10_000])).collect();
    let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
    came.undecrypted = records[..records.len() - 1].to_vec();
    (came.unsent, came.decrypted) = (b"unsent".to_vec(), b"plain".to_vec());
    let (mut tls, leftover) = TlsConnection::new(came, TlsRole::Server);
    assert_eq!((&leftover.unsent[..], &leftover.plain[..]), (&b"unsent"[..], &b"plain"[..]));
    assert!(tls.has_unopened());
    let mut room = vec![0; 25_000];
    let wire = tls.partial_record().to_vec();
    assert_eq!(tls.open(&wire, &mut room, &mut Vec::new()), 20_000, "as much as there is room for");
    assert!(tls.has_unopened());
    assert_eq!(receive(&mut tls, b"").0.len(), 60_000);
    assert!(!tls.has_unopened());
    assert_eq!(receive(&mut tls, &records[records.len() - 1..]).0.len(), 10_000);
    let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
    came.has_close_notify = true;
    assert_eq!(TlsConnection::new(came, TlsRole::Server).0.receive_state(), ReceiveState::CloseNotify);
}
