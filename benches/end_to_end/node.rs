//! The echo node that all of them stand in front of: this program again, as a child process.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};

/// The argument that makes this program the echo node.
pub const NODE: &str = "echo-node";
/// The node's answer to that very key (RFC 6455 section 1.3).
const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The echo node, as a child process of this program.
pub struct Node {
    child: Child,
    /// Where it listens on loopback.
    pub port: u16,
}

impl Node {
    /// Starts this program as the node.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(NODE).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let port = line.trim().parse().map_err(|_| io::Error::other("the node names no port"))?;
        Ok(Self { child, port })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers each upgrade and then sends back what it gets. One thread, level-triggered, no more than that.
pub fn echo_node() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(u64::MAX), EventFlags::IN)?;
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut scratch = vec![0; 64 * 1024];
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let at = event.data.u64();
            if at == u64::MAX {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                epoll::add(&epoll, &stream, EventData::new_u64(clients.len() as u64), EventFlags::IN)?;
                clients.push(Some(Client { stream, head: Some(Vec::new()) }));
            } else if let Some(place) = clients.get_mut(at as usize)
                && let Some(client) = place
                && !client.serve(&mut scratch).unwrap_or(false)
            {
                *place = None;
            }
        }
    }
}

/// A connection of the echo node.
struct Client {
    stream: TcpStream,
    /// The request head so far, until it is whole.
    head: Option<Vec<u8>>,
}

impl Client {
    /// One read and what it asks for; false at the end of the stream.
    fn serve(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let read = self.stream.read(scratch)?;
        if let Some(head) = &mut self.head {
            head.extend_from_slice(&scratch[..read]);
            if head.ends_with(b"\r\n\r\n") {
                let key = b"dGhlIHNhbXBsZSBub25jZQ==";
                // A health check may ask for anything; only the benchmark's own key has this answer.
                let is_ours = head.windows(key.len()).any(|window| window == key);
                self.stream
                    .write_all(if is_ours { ANSWER } else { "HTTP/1.1 404 Not Found\r\n\r\n" }.as_bytes())?;
                self.head = None;
            }
        } else {
            self.stream.write_all(&scratch[..read])?;
        }
        Ok(read > 0)
    }
}
