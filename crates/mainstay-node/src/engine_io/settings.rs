//! What may be set about the Engine.IO server; each default is beside its field and is Node's own unless it says why
//! not.

use std::time::Duration;

use crate::engine_io::cors::Cors;

/// The settings of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// Where the server answers, with its slash at the end. Default `/socket.io/`.
    pub path: String,
    /// The transports that are served. Default: both.
    pub transports: Transports,
    /// Whether clients of protocol 3 (`socket.io-client` 2) are served. Default: no.
    pub revision_3: bool,
    /// Protocol 4: the time from a pong to the next ping. Protocol 3: what the client is told. Default 25 s.
    pub ping_interval: Duration,
    /// The time that a client has to answer a ping. Default 20 s.
    pub ping_timeout: Duration,
    /// A client from which nothing at all came for this long is closed; `None`: only the heartbeat decides. Default
    /// 60 s, which is more than the heartbeat allows and so only bites when that is made slower.
    pub idle: Option<Duration>,
    /// The time from the probe's WebSocket to its `5`. Default 10 s.
    pub upgrade_timeout: Duration,
    /// The longest message, and the longest body of a POST, in bytes. Default 16 KiB (Node: 1 MB), because chat
    /// messages are small and each connection may make the node keep that much.
    pub max_payload: u32,
    /// Packets that may wait for one client; with one more it is cut. Default 4096.
    pub queue_packets: usize,
    /// Bytes that may wait for one client; with one more it is cut. Default 1 MiB.
    pub queue_bytes: usize,
    /// Pages of other origins that may read polling answers. Default: none, which browsers take as a no.
    pub cors: Option<Cors>,
    /// The name of a cookie that gives the session's sid to the client with the answer to a polling handshake, so that a
    /// balancer can keep to it. Default: none.
    pub cookie: Option<String>,
    /// What a polling session is bound to, beside the credentials of its handshake. Default: nothing.
    pub binding: SessionBinding,
    /// Sessions that may be open at once; with one more a handshake gets 503. Default 200,000: a bound for the memory
    /// of the table, far above what a node lets in.
    pub sessions: usize,
}

/// Which transports a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transports {
    /// HTTP long-polling.
    pub polling: bool,
    /// WebSocket, at once or as an upgrade of polling.
    pub websocket: bool,
}

/// What a polling session is bound to, beside the credentials of its handshake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionBinding {
    /// The client's address.
    pub address: bool,
    /// A cookie that says who the client is.
    pub cookie: Option<String>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            path: "/socket.io/".into(),
            transports: Transports { polling: true, websocket: true },
            revision_3: false,
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            idle: Some(Duration::from_secs(60)),
            upgrade_timeout: Duration::from_secs(10),
            max_payload: 16 * 1024,
            queue_packets: 4096,
            queue_bytes: 1024 * 1024,
            cors: None,
            cookie: None,
            binding: SessionBinding::default(),
            sessions: 200_000,
        }
    }
}
