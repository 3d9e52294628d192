//! Socket.IO on top of the Engine.IO server: one [`SocketIoClient`] for each connection, in one or more namespaces.
//!
//! # The life of a session
//!
//! 1. a connection opens. It holds no permit of the node yet; of those that do not go on, the oldest make way (`connect_timeout`).
//! 2. CONNECT names a namespace; the application admits the client or says why not ([`Application::admit`]). Who is
//!    admitted takes a permit, or is refused when there is none (`Server at capacity`).
//! 3. with `pid` and `offset` its earlier session is taken up; otherwise it gets a new id.
//! 4. events go to the application, in order; answers find whoever asked.
//! 5. the client leaves a namespace, is taken out of it, or its connection ends; only then is its session kept.
//!
//! A connection that was admitted nowhere after [`SocketIoSettings::connect_timeout`] is closed. What is against the protocol
//! closes at once, as Node does. The application is called on the connection's task and must not block.

mod application;
mod client;
mod connect_timeout;
mod context;
mod handshake_facts;
mod server;

pub use application::{Admission, Application, ConnectError, ConnectRequest, Reply};
pub use client::SocketIoClient;
pub use connect_timeout::PendingLimits;
pub use context::{CONNECT_TIMEOUT, SocketIoSettings};
pub use server::SocketIoServer;
