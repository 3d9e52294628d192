//! The same over TLS 1.3: clients of rustls, one certificate for all balancers. What the clients cost is not counted.
//!
//! A balancer with TLS on may not be dumpable, so its memory can be read by root alone; without that it is left out.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::balancer::Balancer;
use super::{CONNECTIONS, REQUEST, frame, print, rounds};

/// Payload and echoes of each connection in a round.
const SIZES: [(usize, usize); 2] = [(1024, 300), (16 * 1024, 100)];
/// Idle tunnels between which the slope of the memory is taken.
const IDLE: [usize; 2] = [300, 1_500];
/// Handshakes in a round.
const HANDSHAKES: usize = 150;

type Client = StreamOwned<ClientConnection, TcpStream>;

/// Writes the certificate that all of them show: `chain.pem`, `key.pem`, and both in `both.pem`.
pub fn issue(folder: &Path) -> io::Result<Clients> {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    let (chain, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    std::fs::write(folder.join("chain.pem"), &chain)?;
    std::fs::write(folder.join("key.pem"), &key)?;
    std::fs::write(folder.join("both.pem"), chain + &key)?;
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Clients(Arc::new(config)))
}

/// Makes clients that believe the certificate.
pub struct Clients(Arc<ClientConfig>);

impl Clients {
    fn connect(&self, balancer: &Balancer) -> io::Result<Client> {
        let socket = TcpStream::connect(("127.0.0.1", balancer.secure_port))?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)?;
        let mut client = StreamOwned::new(session, socket);
        client.write_all(REQUEST.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        if head.starts_with(b"HTTP/1.1 101 ") { Ok(client) } else { Err(io::Error::other("no 101")) }
    }

    /// Everything, printed.
    pub fn measure(&self, balancers: &[Balancer]) -> io::Result<()> {
        self.memory(balancers)?;
        let costs = rounds(balancers, |balancer| {
            let open: Vec<Client> =
                (0..HANDSHAKES).map(|_| self.connect(balancer)).collect::<io::Result<_>>()?;
            Ok(open.len())
        })?;
        print("TLS: CPU per handshake, its end", "us", balancers, &costs);
        SIZES.iter().try_for_each(|(payload, echoes)| self.messages(balancers, *payload, *echoes))
    }

    fn memory(&self, balancers: &[Balancer]) -> io::Result<()> {
        let mut slopes = Vec::new();
        for balancer in balancers {
            let (mut bytes, mut open) = ([0.0; 2], Vec::new());
            for (count, bytes) in IDLE.into_iter().zip(&mut bytes) {
                while open.len() < count {
                    open.push(self.connect(balancer)?);
                }
                echo(open.last_mut().expect("some are open"), &frame(8))?;
                *bytes = balancer.private_bytes()?;
            }
            slopes.push((bytes[1] - bytes[0]) / (IDLE[1] - IDLE[0]) as f64);
        }
        print("TLS: memory per idle tunnel", "B", balancers, &slopes);
        Ok(())
    }

    fn messages(&self, balancers: &[Balancer], payload: usize, echoes: usize) -> io::Result<()> {
        let mut fleets: Vec<Vec<Client>> = Vec::new();
        for balancer in balancers {
            fleets.push((0..CONNECTIONS).map(|_| self.connect(balancer)).collect::<io::Result<_>>()?);
        }
        let message = frame(payload);
        let mut turn = 0;
        let costs = rounds(balancers, |_| {
            let fleet = turn % fleets.len();
            turn += 1;
            for _ in 0..echoes {
                // All are on their way before the first is waited for.
                fleets[fleet].iter_mut().try_for_each(|client| client.write_all(&message))?;
                for client in &mut fleets[fleet] {
                    client.read_exact(&mut vec![0; message.len()])?;
                }
            }
            Ok(echoes * CONNECTIONS)
        })?;
        print(&format!("TLS: CPU per echo of {payload} B"), "us", balancers, &costs);
        Ok(())
    }
}

fn echo(client: &mut Client, message: &[u8]) -> io::Result<()> {
    client.write_all(message)?;
    client.read_exact(&mut vec![0; message.len()])
}
