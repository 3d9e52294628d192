//! TLS keys that came from the process before: nobody can look at them, and they go with their tunnels.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mainstay::net::tls::extracted::CipherSuite;
use mainstay::net::tls::key_schedule::{MAX_SECRET_LEN, key_and_iv};
use parking_lot::Mutex;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, KeyLog, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::stage::{Stage, copy};
use super::traffic::{self, masked};
use crate::balancer::{Balancer, DEADLINE, asked, config, node};

const REQUEST: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The two traffic secrets of a client's connection.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<Vec<u8>>>);

impl KeyLog for Told {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label.ends_with("_TRAFFIC_SECRET_0") {
            self.0.lock().push(secret.to_vec());
        }
    }
}

impl Told {
    /// What must not be found: each secret, and the key that belongs to it.
    fn needles(&self) -> Vec<Vec<u8>> {
        let key = |secret: &Vec<u8>| {
            let mut whole = [0; MAX_SECRET_LEN];
            whole[..secret.len()].copy_from_slice(secret);
            let suite = if secret.len() == 48 { CipherSuite::Aes256Gcm } else { CipherSuite::Aes128Gcm };
            key_and_iv(suite, &whole).0[..suite.key_len()].to_vec()
        };
        self.0.lock().iter().flat_map(|secret| [secret.clone(), key(secret)]).collect()
    }
}

/// How often each of `needles` is in the memory of `process`.
fn found(process: i32, needles: &[Vec<u8>]) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut found = vec![0; needles.len()];
    let mut begins = [false; 256];
    needles.iter().for_each(|needle| begins[usize::from(needle[0])] = true);
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, rest) = line.split_once('-').unwrap();
        let to = rest.split_once(' ').unwrap().0;
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        // A region may be gone by now.
        let read = memory.read_at(&mut bytes, from).unwrap_or(0);
        for (at, _) in bytes[..read].iter().enumerate().filter(|(_, byte)| begins[usize::from(**byte)]) {
            for (needle, count) in needles.iter().zip(&mut found) {
                *count += usize::from(bytes[at..read].starts_with(needle));
            }
        }
    }
    found
}

/// A stage whose balancer is run by a user of its own where the test is run by root: to root nothing is closed, so only
/// the process of another user shows whether it could be looked into.
fn stage(text: &str, node: TcpListener) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("mainstay");
    copy(Path::new(env!("CARGO_BIN_EXE_mainstay")), &binary);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("sh");
    let other =
        "chmod -R a+rX \"$(dirname \"$2\")\" && exec setpriv --reuid 65534 --regid 65534 --clear-groups";
    let become_it = if rustix::process::geteuid().is_root() { other } else { "exec" };
    command.args(["-c", &format!("{become_it} {} \"$@\"", binary.display()), "sh"]);
    let mut balancer = Balancer::spawn(text, command);
    balancer.wait_until_serving();
    Stage { balancer, node, folder, binary }
}

/// The kernel gives what belongs to a process that leaves no core dumps to root.
fn is_closed_to_its_user(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(!user.starts_with("Uid:\t0\t"), "root's own processes show nothing");
    fs::metadata(format!("/proc/{process}/mem")).unwrap().uid() == 0
}

/// A client with TLS 1.3 whose secrets are known.
fn client(address: &str, papers: &Papers, told: &Arc<Told>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(papers.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.key_log = Arc::clone(told) as Arc<dyn KeyLog>;
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    StreamOwned::new(client, socket)
}

/// A certificate that every user may read.
struct Papers {
    cert: rcgen::Certificate,
    folder: TempDir,
}

impl Papers {
    fn new() -> Self {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cert.pem"), issued.cert.pem()).unwrap();
        fs::write(folder.path().join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        for (path, mode) in [("", 0o755), ("cert.pem", 0o644), ("key.pem", 0o644)] {
            fs::set_permissions(folder.path().join(path), Permissions::from_mode(mode)).unwrap();
        }
        Self { cert: issued.cert, folder }
    }

    /// The config with TLS on its listener.
    fn secured(&self, config: &str) -> String {
        let folder = self.folder.path().display();
        let tls = format!(
            "0\", tls: {{ certificates: [{{ cert: {folder}/cert.pem, key: {folder}/key.pem }}] }} }}]"
        );
        config.replacen("0\" }]", &tls, 1)
    }
}

#[test]
fn keys_that_came_over_are_closed_to_others_and_go_with_their_tunnels() {
    let (papers, node) = (Papers::new(), node());
    let plain = config(&node, "5s", "health: null");
    let stage = stage(&papers.secured(&plain), node);
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        let told = Arc::new(Told::default());
        let mut client = client(&stage.balancer.address, &papers, &told);
        client.write_all(REQUEST).unwrap();
        let (mut at_node, _) = asked(&stage.node);
        at_node.send(YES);
        let mut head = [0; 12];
        client.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 101");
        tunnels.push((told, client, at_node));
    }
    // A request that nobody answers yet: the old process stays for it, with nothing of its tunnels.
    let mut asking = client(&stage.balancer.address, &papers, &Arc::default());
    asking.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (at_slow, _) = asked(&stage.node);
    let old = stage.serving();
    // The process that takes over has no listener with TLS, so nothing of its own gives it a key.
    fs::write(stage.balancer.folder.path().join("balancer.yaml"), &plain).unwrap();
    let (done, told) = stage.upgrade();
    assert!(done && told.contains("tunnels that went over: 3"), "{told}\n{}", stage.balancer.log());
    let process = stage.serving();
    assert!(is_closed_to_its_user(process));
    let needles: Vec<Vec<u8>> = tunnels.iter().flat_map(|(told, ..)| told.needles()).collect();
    assert_eq!(needles.len(), 12);
    if !rustix::process::geteuid().is_root() {
        assert!(File::open(format!("/proc/{process}/mem")).is_err());
        return;
    }
    // What it had is wiped as well: of the keys nothing is left. (Of the secrets, rustls leaves some in its own state.)
    let keys: Vec<Vec<u8>> = needles.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(found(old, &keys), [0; 6]);
    drop(at_slow);
    stage.alone(process);
    // Once each, where they are used: what they came in is wiped.
    assert_eq!(found(process, &needles), [1; 12]);
    // They are used, which makes contexts of them.
    for (_, client, at_node) in &mut tunnels {
        client.write_all(&masked(7)).unwrap();
        at_node.expect(&masked(7));
        at_node.send(traffic::plain(7));
        client.read_exact(&mut vec![0; traffic::plain(7).len()]).unwrap();
    }
    drop(tunnels);
    stage.shows("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}", 0);
    assert_eq!(found(process, &needles), [0; 12]);
}
