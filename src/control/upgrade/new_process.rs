//! The new process: takes over everything from the old one.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::batch_receiver::BatchReceiver;
use super::channel::{ChannelError, decode, expect, send};
use super::control_state::ControlState;
use super::program::VARIABLE;
use super::protocol::{HandedState, Hello, NodeRecord, Ready, VERSION, kind};
use crate::control::probe::all_nodes;
use crate::control::{BoundListeners, Reload, service_status};
use crate::net::handover_socket::{HandoverError, HandoverSocket, encode_frame, take_parent_socket};
use crate::net::inherited_sockets::InheritedSockets;
use crate::proxy::ProxyContext;
use crate::service;

/// The old process sends what is expected of it within this.
const REPLY_TIME: Duration = Duration::from_secs(30);

/// The socket to the process that this one is to replace.
#[derive(Debug)]
pub struct UpgradeChannel(OwnedFd);

impl UpgradeChannel {
    /// `None` where this process replaces none. To be called once: it takes the standard input.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn from_env() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        Ok(take_parent_socket(parent)?.map(Self))
    }

    /// Tells the old process why there will be no new one.
    pub fn refuse(self, why: &str) {
        // Where this does not get through, the end of this process says enough.
        let _ = UnixStream::from(self.0).write_all(&encode_frame(kind::FAULT, why));
    }

    /// Waits for the first message of the old process.
    ///
    /// # Errors
    ///
    /// It is not understood; the old process was told so.
    pub(crate) async fn greet(self) -> Result<Takeover, ChannelError> {
        let mut link = HandoverSocket::from_fd(self.0).map_err(HandoverError::from)?;
        let frame = expect(&mut link, kind::HELLO, REPLY_TIME).await?;
        let hello: Hello = decode(&frame)?;
        if hello.version != VERSION {
            let why =
                format!("it speaks version {} of the handover, and this program {VERSION}", hello.version);
            link.send(kind::FAULT, why.as_bytes(), &[]).await?;
            return Err(ChannelError::Refused(why));
        }
        Ok(Takeover { link, hello, sockets: frame.descriptors })
    }
}

/// A process on its way to replace another one.
#[derive(Debug)]
pub(crate) struct Takeover {
    link: HandoverSocket,
    hello: Hello,
    sockets: Vec<OwnedFd>,
}

impl Takeover {
    /// The generation of the old process's config.
    pub(crate) fn generation(&self) -> u32 {
        self.hello.generation
    }

    /// The age of the old process's health clock.
    pub(crate) fn clock(&self) -> Duration {
        self.hello.clock
    }

    /// The listening sockets.
    pub(crate) fn inherited(&mut self) -> InheritedSockets {
        let names = std::mem::take(&mut self.hello.listeners);
        InheritedSockets::from_handover(names.into_iter().zip(std::mem::take(&mut self.sockets)).collect())
    }

    /// Tells the old process why there will be no new one.
    pub(crate) async fn refuse(mut self, why: &str) {
        // Where this does not get through, the end of this process says enough.
        let _ = self.link.send(kind::FAULT, why.as_bytes(), &[]).await;
    }

    /// Takes over: returns when this process serves. The returned future receives the rest.
    ///
    /// # Errors
    ///
    /// The old process goes on.
    pub(crate) async fn take_over(
        mut self,
        reload: &Arc<Reload>,
        bound: BoundListeners,
    ) -> Result<impl Future<Output = ()> + Send + use<>, ChannelError> {
        reload.prepare().await;
        let front = Arc::clone(reload.front());
        send(&mut self.link, kind::READY, &Ready { settles: true }).await?;
        let state = self.state().await?;
        front.metrics.import(state.counted.clone());
        state.nodes.iter().for_each(|record| restore_health(&front, record));
        let mut control = ControlState::new(reload, self.hello.settles, self.hello.generation);
        control.govern(state).await;
        let mut receiver = BatchReceiver::new(self.link, reload, control);
        receiver.until_serving().await?;
        reload.open_all(bound).await;
        receiver.serves();
        service::notify_taken_over(&service_status::status_line(&front));
        Ok(receiver.finish())
    }

    /// The state that the old process sends before it freezes a tunnel; until then it may ping.
    async fn state(&mut self) -> Result<HandedState, ChannelError> {
        loop {
            let frame = match expect(&mut self.link, kind::STATE, REPLY_TIME).await {
                Err(ChannelError::UnexpectedFrame(kind::PING)) => {
                    self.link.send(kind::PONG, &[], &[]).await?;
                    continue;
                }
                frame => frame?,
            };
            return decode(&frame);
        }
    }
}

fn restore_health(front: &ProxyContext, record: &NodeRecord) {
    let found = all_nodes(&front.state.load()).into_iter().find(|(pool, node)| {
        *pool.config.name == *record.pool
            && node.node.id.as_str() == record.node
            && node.node.address.to_string() == record.address
    });
    if let Some((_, node)) = found {
        node.restore_health(&record.health, front.now());
    }
}
