//! Takes a live TLS connection out of rustls: the socket, and what our own record layer needs ([`ExtractedTls`]).
//!
//! The order matters, and each step is there because leaving it out loses bytes or breaks the peer:
//!
//! 1. A connection that had an error or sent an alert is closed, not extracted.
//! 2. An empty write makes rustls encrypt an answer to a KeyUpdate that it has only queued.
//! 3. What waits to be sent is taken along: tickets, that answer, the rest of a 101.
//! 4. What was decrypted and not read is taken along, and whether close_notify was among it.
//! 5. rustls gives keys, IVs and sequence numbers up.
//! 6. TLS 1.3: the traffic secrets that the key log caught are moved on until they yield those keys: peers may have
//!    updated theirs before. It also proves that log and connection belong together.
//! 7. The record reader has the bytes of the record that had begun, and what was read ahead.

use std::io::{self, Read, Write};

use rustls::{Connection, ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};
use tokio_rustls::TlsStream;

use super::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
use super::key_schedule::{derive_keys, update_secret};
use super::record_reader::RecordReader;
use super::secret_log::{TrafficSecret, TrafficSecretLog};

/// The most KeyUpdates of one direction that are followed. A peer that sends more without need is disconnected.
const MAX_KEY_UPDATES: usize = 64;

/// Why a connection cannot be extracted; it is closed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// It had ended already, or rustls does not give its secrets up.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Its bytes could not be taken out.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Neither TLS 1.2 nor 1.3, or a cipher that is not one of ours.
    #[error("a version or a cipher that cannot be extracted")]
    Unsupported,
    /// The caught secrets lead to other keys, or there are none.
    #[error("the traffic secrets do not lead to the keys")]
    SecretMismatch,
}

/// Takes `stream` out of rustls; `secrets` is the key log that it was made with.
///
/// # Errors
///
/// See [`ExtractError`]; the socket is closed.
pub(crate) fn extract<S>(
    stream: TlsStream<RecordReader<S>>,
    secrets: &TrafficSecretLog,
) -> Result<(S, ExtractedTls), ExtractError> {
    let (reader, mut connection, is_server) = match stream {
        TlsStream::Server(stream) => {
            let (reader, connection) = stream.into_inner();
            (reader, Connection::from(connection), true)
        }
        TlsStream::Client(stream) => {
            let (reader, connection) = stream.into_inner();
            (reader, Connection::from(connection), false)
        }
    };
    connection.process_new_packets()?;
    let unsent = take_unsent(&mut connection)?;
    let (plain, is_closed) = take_decrypted(&mut connection)?;
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => TlsProtocolVersion::Tls12,
        Some(ProtocolVersion::TLSv1_3) => TlsProtocolVersion::Tls13,
        _ => return Err(ExtractError::Unsupported),
    };
    let ExtractedSecrets { tx, rx } = &connection.dangerous_extract_secrets()?;
    let (tx_secret, rx_secret) = match (version, is_server) {
        (TlsProtocolVersion::Tls12, _) => (None, None),
        (TlsProtocolVersion::Tls13, is_server) => {
            let (client, server) = secrets.take().ok_or(ExtractError::SecretMismatch)?;
            if is_server { (Some(server), Some(client)) } else { (Some(client), Some(server)) }
        }
    };
    let (suite, ..) = cipher_parts(&tx.1)?;
    let (tx, rx) = (traffic_keys(tx_secret, tx)?, traffic_keys(rx_secret, rx)?);
    let (stream, undecrypted) = reader.into_parts();
    Ok((
        stream,
        ExtractedTls {
            version,
            suite,
            tx,
            rx,
            undecrypted,
            unsent,
            decrypted: plain,
            has_close_notify: is_closed,
        },
    ))
}

/// Records that are made and not written.
fn take_unsent(connection: &mut Connection) -> io::Result<Vec<u8>> {
    // `write_all` would not call `write` for nothing.
    let _ = connection.writer().write(&[])?;
    let mut unsent = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut unsent)?;
    }
    Ok(unsent)
}

/// Bytes that are decrypted and not read, and whether the peer's close_notify came behind them.
fn take_decrypted(connection: &mut Connection) -> io::Result<(Vec<u8>, bool)> {
    let mut plain = Vec::new();
    match connection.reader().read_to_end(&mut plain) {
        Ok(_) => Ok((plain, true)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((plain, false)),
        Err(error) => Err(error),
    }
}

fn cipher_parts(secrets: &ConnectionTrafficSecrets) -> Result<(CipherSuite, &[u8], &[u8]), ExtractError> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    match secrets {
        Aes128Gcm { key, iv } => Ok((CipherSuite::Aes128Gcm, key.as_ref(), iv.as_ref())),
        Aes256Gcm { key, iv } => Ok((CipherSuite::Aes256Gcm, key.as_ref(), iv.as_ref())),
        Chacha20Poly1305 { key, iv } => Ok((CipherSuite::Chacha20Poly1305, key.as_ref(), iv.as_ref())),
        _ => Err(ExtractError::Unsupported),
    }
}

/// The keys of one direction; with the first traffic secret of TLS 1.3, moved on to the present one.
fn traffic_keys(
    secret: Option<TrafficSecret>,
    traffic: &(u64, ConnectionTrafficSecrets),
) -> Result<Box<TrafficKeys>, ExtractError> {
    let (suite, key, iv) = cipher_parts(&traffic.1)?;
    if key.len() != suite.key_len() || iv.len() != 12 {
        return Err(ExtractError::Unsupported);
    }
    let mut keys = Box::new(TrafficKeys::BLANK);
    keys.seq = traffic.0;
    keys.key[..key.len()].copy_from_slice(key);
    keys.iv.copy_from_slice(iv);
    if let Some(first) = secret {
        keys.secret.copy_from_slice(&first[..]);
        if !advance_secret(suite, &mut keys) {
            return Err(ExtractError::SecretMismatch);
        }
    }
    Ok(keys)
}

/// Moves the secret on to the one that these keys are made of; false when none of those that come next is.
fn advance_secret(suite: CipherSuite, keys: &mut TrafficKeys) -> bool {
    let mut made = TrafficKeys::BLANK;
    for _ in 0..=MAX_KEY_UPDATES {
        made.secret.copy_from_slice(&keys.secret);
        derive_keys(suite, &mut made);
        if made.key == keys.key && made.iv == keys.iv {
            return true;
        }
        update_secret(suite, &mut keys.secret);
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aws_lc_rs::aead;
    use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite};
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

    use super::*;
    use crate::net::tls::key_schedule::key_and_iv;

    /// The least record layer that can go on with an extracted connection.
    struct Own(DuplexStream, ExtractedTls);

    impl Own {
        /// The next record's type and content: of TLS 1.3, what is inside.
        async fn open(&mut self) -> (u8, Vec<u8>) {
            let Self(stream, extracted) = self;
            let mut take = async |length: usize| {
                while extracted.undecrypted.len() < length {
                    let byte = stream.read_u8().await.unwrap();
                    extracted.undecrypted.push(byte);
                }
                extracted.undecrypted.drain(..length).collect::<Vec<u8>>()
            };
            let header: [u8; 5] = take(5).await.try_into().unwrap();
            let body = take(usize::from(u16::from_be_bytes([header[3], header[4]]))).await;
            open(extracted, header, body)
        }

        /// Sends what is unsent, and then one record.
        async fn seal(&mut self, kind: u8, data: &[u8]) {
            let unsent = std::mem::take(&mut self.1.unsent);
            self.0.write_all(&unsent).await.unwrap();
            let record = seal(&mut self.1, kind, data);
            self.0.write_all(&record).await.unwrap();
        }
    }

    fn key_of(extracted: &ExtractedTls, keys: &TrafficKeys) -> aead::LessSafeKey {
        let algorithm = match extracted.suite {
            CipherSuite::Aes128Gcm => &aead::AES_128_GCM,
            CipherSuite::Aes256Gcm => &aead::AES_256_GCM,
            CipherSuite::Chacha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = &keys.key[..extracted.suite.key_len()];
        aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key).unwrap())
    }

    fn nonce(keys: &TrafficKeys) -> [u8; 12] {
        let mut nonce = keys.iv;
        nonce[4..].iter_mut().zip(keys.seq.to_be_bytes()).for_each(|(byte, seq)| *byte ^= seq);
        nonce
    }

    fn is_explicit(extracted: &ExtractedTls) -> bool {
        extracted.version == TlsProtocolVersion::Tls12 && extracted.suite != CipherSuite::Chacha20Poly1305
    }

    fn aad12(seq: u64, kind: u8, length: usize) -> Vec<u8> {
        [&seq.to_be_bytes()[..], &[kind, 3, 3], &(length as u16).to_be_bytes()].concat()
    }

    fn open(extracted: &mut ExtractedTls, header: [u8; 5], mut body: Vec<u8>) -> (u8, Vec<u8>) {
        let key = key_of(extracted, &extracted.rx);
        let mut nonce = nonce(&extracted.rx);
        if is_explicit(extracted) {
            nonce[..4].copy_from_slice(&extracted.rx.iv[..4]);
            nonce[4..].copy_from_slice(&body[..8]);
            body.drain(..8);
        }
        let aad = match extracted.version {
            TlsProtocolVersion::Tls13 => header.to_vec(),
            TlsProtocolVersion::Tls12 => aad12(extracted.rx.seq, header[0], body.len() - 16),
        };
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let length = key.open_in_place(nonce, aead::Aad::from(aad), &mut body).expect("it decrypts").len();
        extracted.rx.seq += 1;
        body.truncate(length);
        let kind =
            if extracted.version == TlsProtocolVersion::Tls13 { body.pop().unwrap() } else { header[0] };
        (kind, body)
    }

    fn seal(extracted: &mut ExtractedTls, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut body = data.to_vec();
        let key = key_of(extracted, &extracted.tx);
        let nonce = nonce(&extracted.tx);
        let explicit = if is_explicit(extracted) { nonce[4..].to_vec() } else { Vec::new() };
        let is_13 = extracted.version == TlsProtocolVersion::Tls13;
        if is_13 {
            body.push(kind);
        }
        let length = (explicit.len() + body.len() + 16) as u16;
        let mut record = vec![if is_13 { 23 } else { kind }, 3, 3];
        record.extend_from_slice(&length.to_be_bytes());
        let aad = if is_13 { record.clone() } else { aad12(extracted.tx.seq, kind, body.len()) };
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, aead::Aad::from(aad), &mut body).unwrap();
        extracted.tx.seq += 1;
        [record, explicit, body].concat()
    }

    fn provider_with(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() })
    }

    fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let versions = if suite.tls13().is_some() { [&TLS13] } else { [&TLS12] };
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider_with(suite))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.enable_secret_extraction = true;
        let mut client = ClientConfig::builder_with_provider(provider_with(suite))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        (server, client)
    }

    struct Pair {
        client: client::TlsStream<RecordReader<DuplexStream>>,
        client_secrets: Arc<TrafficSecretLog>,
        server: server::TlsStream<RecordReader<DuplexStream>>,
        server_secrets: Arc<TrafficSecretLog>,
    }

    async fn pair(suite: SupportedCipherSuite) -> Pair {
        let (mut server, mut client) = configs(suite);
        let (server_secrets, client_secrets) =
            (Arc::new(TrafficSecretLog::default()), Arc::new(TrafficSecretLog::default()));
        (server.key_log, client.key_log) = (server_secrets.clone(), client_secrets.clone());
        let (near, far) = duplex(1 << 20);
        let name = ServerName::try_from("localhost").unwrap();
        let (client, server) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, RecordReader::new(far)),
            TlsAcceptor::from(Arc::new(server)).accept(RecordReader::new(near)),
        );
        Pair { client: client.unwrap(), client_secrets, server: server.unwrap(), server_secrets }
    }

    impl Pair {
        /// The server leaves; the client stays in rustls.
        fn server_leaves(self) -> (Own, client::TlsStream<RecordReader<DuplexStream>>) {
            let (stream, extracted) = extract(TlsStream::Server(self.server), &self.server_secrets).unwrap();
            (Own(stream, extracted), self.client)
        }

        /// Bytes that the client would send for `plain`, not sent.
        fn sealed(&mut self, plain: &[u8]) -> Vec<u8> {
            let (_, connection) = self.client.get_mut();
            sealed(connection, plain)
        }

        async fn wire(&mut self, bytes: &[u8]) {
            // Past the reader and rustls, as if the network brought it.
            let (reader, _) = self.client.get_mut();
            reader.write_all(bytes).await.unwrap();
        }

        /// The server reads that much plaintext, in rustls.
        async fn server_reads(&mut self, expected: &[u8]) {
            let mut read = vec![0; expected.len()];
            self.server.read_exact(&mut read).await.unwrap();
            assert_eq!(read, expected);
        }
    }

    async fn say(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    fn sealed(connection: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
        connection.writer().write_all(plain).unwrap();
        let mut wire = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// All suites of the provider, of both versions; the certificates here have ECDSA keys.
    fn suites() -> Vec<SupportedCipherSuite> {
        let mut suites = provider::default_provider().cipher_suites;
        suites.retain(|suite| !format!("{suite:?}").contains("RSA_"));
        assert_eq!(suites.len(), 6);
        suites
    }

    #[tokio::test]
    async fn bytes_go_on_both_ways_after_leaving_in_either_role_and_every_suite() {
        for suite in suites() {
            for server_leaves in [true, false] {
                let mut pair = pair(suite).await;
                say(&mut pair.client, b"GET").await;
                pair.server_reads(b"GET").await;
                say(&mut pair.server, b"101").await;
                pair.client.read_exact(&mut [0; 3]).await.unwrap();
                let (mut own, mut stays) = if server_leaves {
                    let (own, client) = pair.server_leaves();
                    (own, TlsStream::Client(client))
                } else {
                    let (stream, extracted) =
                        extract(TlsStream::Client(pair.client), &pair.client_secrets).unwrap();
                    (Own(stream, extracted), TlsStream::Server(pair.server))
                };
                say(&mut stays, b"ping").await;
                assert_eq!(own.open().await, (23, b"ping".to_vec()), "{suite:?}");
                own.seal(23, b"pong").await;
                let mut pong = [0; 4];
                stays.read_exact(&mut pong).await.unwrap();
                assert_eq!(&pong, b"pong", "{suite:?}");
                assert!(!own.1.has_close_notify && own.1.decrypted.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn a_record_that_is_cut_anywhere_goes_on_after_leaving() {
        let suite = suites()[0];
        let length = pair(suite).await.sealed(b"second").len();
        for cut in 0..=length {
            let mut pair = pair(suite).await;
            let wire = [pair.sealed(b"first"), pair.sealed(b"second")].concat();
            let (head, tail) = wire.split_at(wire.len() - length + cut);
            pair.wire(head).await;
            pair.server_reads(b"first").await;
            // One more look, so that rustls takes what there is of the cut record.
            let mut nothing = [0; 0];
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let mut out = tokio::io::ReadBuf::new(&mut nothing);
            let _ = tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut pair.server), &mut cx, &mut out);
            pair.wire(tail).await;
            let (mut own, _client) = pair.server_leaves();
            let second = if own.1.decrypted.is_empty() {
                own.open().await.1
            } else {
                std::mem::take(&mut own.1.decrypted)
            };
            assert_eq!(second, b"second", "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_comes_together_with_the_finished_is_not_lost() {
        for suite in suites() {
            let (mut server, mut client) = configs(suite);
            let secrets = Arc::new(TrafficSecretLog::default());
            (server.key_log, client.enable_secret_extraction) = (secrets.clone(), true);
            let (near, mut far) = duplex(1 << 20);
            let accepting = TlsAcceptor::from(Arc::new(server)).accept(RecordReader::new(near));
            let playing = async {
                let name = ServerName::try_from("localhost").unwrap();
                let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
                let mut coalesced = Vec::new();
                while client.is_handshaking() {
                    while client.wants_write() {
                        client.write_tls(&mut coalesced).unwrap();
                    }
                    far.write_all(&std::mem::take(&mut coalesced)).await.unwrap();
                    let mut some = [0; 4096];
                    let length = far.read(&mut some).await.unwrap();
                    client.read_tls(&mut &some[..length]).unwrap();
                    client.process_new_packets().unwrap();
                }
                // The Finished of TLS 1.3 is still unsent here, and goes out with the first data in one write.
                let one = sealed(&mut client, b"early one");
                let two = sealed(&mut client, b"early two");
                far.write_all(&[one, two].concat()).await.unwrap();
                far
            };
            let (server, far) = tokio::join!(accepting, playing);
            let (stream, extracted) = extract(TlsStream::Server(server.unwrap()), &secrets).unwrap();
            let mut own = Own(stream, extracted);
            let mut got = std::mem::take(&mut own.1.decrypted);
            while got.len() < 18 {
                got.extend(own.open().await.1);
            }
            assert_eq!(got, b"early oneearly two", "{suite:?}");
            drop(far);
        }
    }

    #[tokio::test]
    async fn the_answer_to_a_key_update_that_rustls_has_only_queued_is_sent() {
        let mut pair = pair(provider::cipher_suite::TLS13_AES_128_GCM_SHA256).await;
        let (_, connection) = pair.client.get_mut();
        connection.refresh_traffic_keys().unwrap();
        say(&mut pair.client, b"x").await;
        pair.server_reads(b"x").await;
        let (mut own, mut client) = pair.server_leaves();
        assert!(!own.1.unsent.is_empty(), "the answer");
        own.seal(23, b"after").await;
        let mut after = [0; 5];
        client.read_exact(&mut after).await.unwrap();
        assert_eq!(&after, b"after");
        say(&mut client, b"too").await;
        assert_eq!(own.open().await, (23, b"too".to_vec()));
    }

    #[tokio::test]
    async fn secrets_follow_up_to_64_key_updates_and_no_more() {
        for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
            for (updates, follows) in [(1, true), (4, true), (64, true), (65, false)] {
                let mut pair = pair(suite).await;
                for _ in 0..updates {
                    pair.client.get_mut().1.refresh_traffic_keys().unwrap();
                    say(&mut pair.client, b"x").await;
                    pair.server_reads(b"x").await;
                }
                let left = extract(TlsStream::Server(pair.server), &pair.server_secrets);
                if !follows {
                    assert!(matches!(left, Err(ExtractError::SecretMismatch)), "{updates}");
                    continue;
                }
                let (stream, extracted) = left.unwrap();
                // The caught secret is the present one: the next update starts from it.
                let mut next = extracted.rx.secret;
                update_secret(suite_of(suite), &mut next);
                pair.client.get_mut().1.refresh_traffic_keys().unwrap();
                say(&mut pair.client, b"y").await;
                let mut own = Own(stream, extracted);
                assert_eq!(own.open().await.0, 22, "the KeyUpdate, under the old key");
                let (key, iv) = key_and_iv(own.1.suite, &next);
                (own.1.rx.key, own.1.rx.iv, own.1.rx.seq) = (*key, *iv, 0);
                assert_eq!(own.open().await, (23, b"y".to_vec()));
            }
        }
    }

    fn suite_of(suite: SupportedCipherSuite) -> CipherSuite {
        match suite.suite() {
            rustls::CipherSuite::TLS13_AES_128_GCM_SHA256 => CipherSuite::Aes128Gcm,
            rustls::CipherSuite::TLS13_AES_256_GCM_SHA384 => CipherSuite::Aes256Gcm,
            _ => CipherSuite::Chacha20Poly1305,
        }
    }

    #[tokio::test]
    async fn the_secrets_of_another_connection_are_noticed() {
        let suite = suites().into_iter().find(|suite| suite.tls13().is_some()).unwrap();
        let (one, other) = (pair(suite).await, pair(suite).await);
        let left = extract(TlsStream::Server(one.server), &other.server_secrets);
        assert!(matches!(left, Err(ExtractError::SecretMismatch)));
        let left = extract(TlsStream::Client(one.client), &TrafficSecretLog::default());
        assert!(matches!(left, Err(ExtractError::SecretMismatch)));
    }

    #[tokio::test]
    async fn a_close_notify_before_leaving_is_told_with_the_bytes_before_it() {
        for suite in suites() {
            let mut pair = pair(suite).await;
            let mut wire = pair.sealed(b"last words");
            let (_, connection) = pair.client.get_mut();
            connection.send_close_notify();
            connection.write_tls(&mut wire).unwrap();
            pair.wire(&wire).await;
            pair.server_reads(b"last").await;
            let mut more = [0; 6];
            pair.server.read_exact(&mut more).await.unwrap();
            assert_eq!(pair.server.read(&mut [0; 1]).await.unwrap(), 0, "rustls has seen the close_notify");
            let (own, _client) = pair.server_leaves();
            assert!(own.1.has_close_notify, "{suite:?}");
        }
    }

    #[tokio::test]
    async fn what_is_decrypted_and_not_read_and_what_is_not_sent_goes_along() {
        let mut pair = pair(suites()[0]).await;
        say(&mut pair.client, b"head and more").await;
        pair.server_reads(b"head").await;
        let (_, connection) = pair.server.get_mut();
        connection.writer().write_all(b"not sent yet").unwrap();
        let (mut own, mut client) = pair.server_leaves();
        assert_eq!(own.1.decrypted, b" and more");
        own.seal(23, b"; sent").await;
        let mut got = [0; 18];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"not sent yet; sent");
    }

    #[tokio::test]
    async fn a_connection_that_had_a_fault_does_not_leave() {
        let mut pair = pair(suites()[0]).await;
        let mut wire = pair.sealed(b"x");
        *wire.last_mut().unwrap() ^= 1;
        pair.wire(&wire).await;
        assert!(pair.server.read(&mut [0; 1]).await.is_err());
        let left = extract(TlsStream::Server(pair.server), &pair.server_secrets);
        assert!(matches!(left, Err(ExtractError::Tls(_))));
    }

    #[test]
    fn what_departs_is_not_printed() {
        let keys = || TrafficKeys { secret: [0xab; 48], key: [0xcd; 32], iv: [0xef; 12], seq: 7 };
        let extracted = ExtractedTls {
            version: TlsProtocolVersion::Tls13,
            suite: CipherSuite::Aes128Gcm,
            tx: Box::new(keys()),
            rx: Box::new(keys()),
            undecrypted: Vec::new(),
            unsent: Vec::new(),
            decrypted: Vec::new(),
            has_close_notify: false,
        };
        let shown = format!("{extracted:?}").to_lowercase();
        assert!(
            !["171", "205", "239", "ab", "cd, ", "ef"]
                .iter()
                .any(|secret| { shown.replace("extracted", "").replace("undecrypted", "").contains(secret) }),
            "{shown}"
        );
    }
}
