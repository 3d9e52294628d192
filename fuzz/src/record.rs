//! TLS records in the relay: two ends of one connection that speak through any pieces, a byte that is changed on the
//! way, and bytes that are no records.

use std::cell::RefCell;

use mainstay::net::tls::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
use mainstay::relay::tls::{ReceiveState, TlsConnection, TlsRole};

use super::input::{Input, Pieces};

/// One input: version, suite and pieces; then what is done, one byte each.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, seed) = (input.byte(), input.byte());
    let version = if kind & 1 == 0 { TlsProtocolVersion::Tls13 } else { TlsProtocolVersion::Tls12 };
    let suite = [CipherSuite::Aes128Gcm, CipherSuite::Aes256Gcm, CipherSuite::Chacha20Poly1305]
        [usize::from(kind >> 1) % 3];
    if kind & 0x80 == 0 {
        talk(version, suite, seed, input);
    } else {
        stranger(version, suite, seed, input.rest());
    }
}

/// One end of the connection.
fn tls(version: TlsProtocolVersion, suite: CipherSuite, role: TlsRole) -> TlsConnection {
    let keys = |fill: u8| {
        let mut keys = TrafficKeys { secret: [fill; 48], key: [fill; 32], iv: [fill; 12], seq: 0 };
        if version == TlsProtocolVersion::Tls12 {
            keys.secret = [0; 48];
        }
        keys
    };
    let (tx, rx) = if role == TlsRole::Server { (1, 2) } else { (2, 1) };
    let departed = ExtractedTls {
        version,
        suite,
        tx: Box::new(keys(tx)),
        rx: Box::new(keys(rx)),
        undecrypted: Vec::new(),
        unsent: Vec::new(),
        decrypted: Vec::new(),
        has_close_notify: false,
    };
    *TlsConnection::new(departed, role).0
}

/// Room for plaintext; a relay thread has more.
const ROOM: usize = 17 * 1024;

thread_local! {
    static PLAIN: RefCell<Vec<u8>> = RefCell::new(vec![0; ROOM]);
}

/// What came out of an end.
#[derive(Default)]
struct Out {
    plain: Vec<u8>,
    said: Vec<u8>,
}

fn open(tls: &mut TlsConnection, wire: &[u8], seed: u8, out: &mut Out) {
    PLAIN.with_borrow_mut(|room| open_into(tls, wire, seed, room, out));
}

fn open_into(tls: &mut TlsConnection, wire: &[u8], seed: u8, room: &mut [u8], out: &mut Out) {
    for piece in Pieces::new(seed, wire.len()) {
        let whole = [tls.partial_record(), &wire[piece]].concat();
        let len = tls.open(&whole, room, &mut out.said);
        out.plain.extend_from_slice(&room[..len]);
        while tls.has_unopened() {
            let before = tls.partial_record().to_vec();
            let len = tls.open(&before, room, &mut out.said);
            out.plain.extend_from_slice(&room[..len]);
            assert!(
                len > 0 || tls.partial_record().len() < before.len() || !tls.has_unopened(),
                "nothing moves"
            );
        }
    }
}

fn talk(version: TlsProtocolVersion, suite: CipherSuite, seed: u8, mut input: Input<'_>) {
    let (mut server, mut client) =
        (tls(version, suite, TlsRole::Server), tls(version, suite, TlsRole::Client));
    let (mut sent, mut heard, mut wire) = (Vec::new(), Out::default(), Vec::new());
    let (mut is_broken, mut has_parted) = (false, false);
    while !input.is_empty() {
        match input.byte() {
            action @ 0..=127 => {
                let plain = input.take(usize::from(action));
                server.seal(plain, &mut wire);
                if !has_parted {
                    sent.extend_from_slice(plain);
                }
            }
            128..=159 => {
                let plain = vec![0x61; 1 << (input.byte() % 15)];
                server.seal(&plain, &mut wire);
                if !has_parted {
                    sent.extend_from_slice(&plain);
                }
            }
            160..=191 => {
                let at = usize::from(input.byte()) << 8 | usize::from(input.byte());
                let bits = input.byte();
                if let Some(byte) = wire.get_mut(at) {
                    *byte ^= bits;
                    is_broken |= bits != 0;
                }
            }
            192..=223 => {
                server.close(&mut wire);
                has_parted = true;
            }
            _ => {
                open(&mut client, &wire, seed, &mut heard);
                wire.clear();
                let mut back = std::mem::take(&mut heard.said);
                client.send_owed_key_update(&mut back);
                let mut answers = Out::default();
                open(&mut server, &back, seed, &mut answers);
                assert!(answers.plain.is_empty(), "nobody sent data there");
            }
        }
    }
    open(&mut client, &wire, seed, &mut heard);
    assert!(sent.starts_with(&heard.plain), "what is opened is what was sealed");
    if !is_broken {
        assert_eq!(heard.plain, sent, "nothing is lost");
        assert_eq!(
            client.receive_state(),
            if has_parted { ReceiveState::CloseNotify } else { ReceiveState::Open }
        );
    }
    client.end_of_stream();
    assert_ne!(client.receive_state(), ReceiveState::Open);
}

/// Bytes of somebody who has no keys: no data ever comes of them.
fn stranger(version: TlsProtocolVersion, suite: CipherSuite, seed: u8, wire: &[u8]) {
    let mut tls = tls(version, suite, TlsRole::Server);
    let mut out = Out::default();
    open(&mut tls, wire, seed, &mut out);
    assert!(out.plain.is_empty());
    assert!(matches!(tls.receive_state(), ReceiveState::Open | ReceiveState::Failed(_)));
    if tls.receive_state() == ReceiveState::Open {
        assert_eq!(tls.partial_record(), wire, "what is not whole yet is kept");
    }
}
