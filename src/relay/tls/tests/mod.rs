//! Connections whose peer is rustls, for the tests of the relay.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use crate::net::tls::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
use crate::net::tls::secret_log::TrafficSecretLog;
use crate::relay::tls::TlsRole;

pub(crate) fn departed(
    (version, suite): (TlsProtocolVersion, CipherSuite),
    tx: TrafficKeys,
    rx: TrafficKeys,
) -> ExtractedTls {
    let (undecrypted, unsent, decrypted) = Default::default();
    let (tx, rx) = (Box::new(tx), Box::new(rx));
    ExtractedTls { version, suite, tx, rx, undecrypted, unsent, decrypted, has_close_notify: false }
}

pub(crate) fn suites() -> Vec<SupportedCipherSuite> {
    let mut suites = provider::default_provider().cipher_suites;
    // The certificate here has an ECDSA key.
    suites.retain(|suite| !format!("{suite:?}").contains("RSA_"));
    suites
}

fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let versions = if suite.tls13().is_some() { [&TLS13] } else { [&TLS12] };
    let provider = CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() };
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_protocol_versions(&versions).unwrap().with_no_client_auth();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
    let server = server.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    (server, client.with_root_certificates(roots).with_no_client_auth())
}

fn carry(from: &mut Connection, to: &mut Connection) {
    while from.wants_write() {
        let mut wire = Vec::new();
        from.write_tls(&mut wire).unwrap();
        let mut wire = &wire[..];
        while !wire.is_empty() {
            to.read_tls(&mut wire).unwrap();
            to.process_new_packets().unwrap();
        }
    }
}

fn keys_of(
    traffic: (u64, ConnectionTrafficSecrets),
    secret: Option<&[u8; 48]>,
) -> (CipherSuite, TrafficKeys) {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let (suite, from, salt) = match &traffic.1 {
        Aes128Gcm { key, iv } => (CipherSuite::Aes128Gcm, key, iv),
        Aes256Gcm { key, iv } => (CipherSuite::Aes256Gcm, key, iv),
        Chacha20Poly1305 { key, iv } => (CipherSuite::Chacha20Poly1305, key, iv),
        _ => panic!("an unknown suite"),
    };
    let (mut key, mut iv) = ([0; 32], [0; 12]);
    key[..suite.key_len()].copy_from_slice(from.as_ref());
    iv.copy_from_slice(salt.as_ref());
    (suite, TrafficKeys { secret: *secret.unwrap_or(&[0; 48]), key, iv, seq: traffic.0 })
}

/// A connection after its handshake: rustls as the peer, and what has left it, whose part is `role`.
pub(crate) fn meet(suite: SupportedCipherSuite, role: TlsRole) -> (Connection, ExtractedTls) {
    let (mut server, mut client) = configs(suite);
    let secrets = Arc::new(TrafficSecretLog::default());
    match role {
        TlsRole::Server => (server.key_log, server.enable_secret_extraction) = (secrets.clone(), true),
        TlsRole::Client => (client.key_log, client.enable_secret_extraction) = (secrets.clone(), true),
    }
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        carry(&mut client, &mut server);
        carry(&mut server, &mut client);
    }
    let (own, mut peer) = if role == TlsRole::Server { (server, client) } else { (client, server) };
    peer.set_buffer_limit(None);
    let traffic = own.dangerous_extract_secrets().unwrap();
    let caught = secrets.take().map(|(c, s)| if role == TlsRole::Server { (s, c) } else { (c, s) });
    let version = if suite.tls13().is_some() { TlsProtocolVersion::Tls13 } else { TlsProtocolVersion::Tls12 };
    let (suite, tx) = keys_of(traffic.tx, caught.as_ref().map(|(tx, _)| &***tx));
    let (_, rx) = keys_of(traffic.rx, caught.as_ref().map(|(_, rx)| &***rx));
    (peer, departed((version, suite), tx, rx))
}
