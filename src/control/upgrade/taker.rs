//! The new process: takes everything from the old one.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::coming::{Coming, Next};
use super::link::{TalkFault, expect, read, say};
use super::program::VARIABLE;
use super::words::{Hello, Known, Ready, Take, VERSION, kind};
use crate::control::probe::nodes;
use crate::control::{Bound, Reload, report};
use crate::net::handover::{Link, LinkFault, fault_frame, from_parent};
use crate::net::inherit::Inherited;
use crate::proxy::ProxyContext;
use crate::service;

/// The old process says everything that it has to say within this.
const WORD: Duration = Duration::from_secs(30);

/// The socket to the process that this one is to replace.
#[derive(Debug)]
pub struct Succession(OwnedFd);

impl Succession {
    /// `None` where this process replaces nobody. To be called once: what is taken is the standard input.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn from_env() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        Ok(from_parent(parent)?.map(Self))
    }

    /// Tells the old process why there will be no new one.
    pub fn refuse(self, why: &str) {
        // When it does not hear, the end of this process tells it enough.
        let _ = UnixStream::from(self.0).write_all(&fault_frame(kind::FAULT, why));
    }

    /// Hears where the old process stands.
    ///
    /// # Errors
    ///
    /// It is not understood; it has been told.
    pub async fn hear(self) -> Result<Taking, TalkFault> {
        let mut link = Link::on(self.0).map_err(LinkFault::from)?;
        let frame = expect(&mut link, kind::HELLO, WORD).await?;
        let hello: Hello = read(&frame)?;
        if hello.version != VERSION {
            let why =
                format!("it speaks version {} of the handover, and this program {VERSION}", hello.version);
            link.send(kind::FAULT, why.as_bytes(), &[]).await?;
            return Err(TalkFault::Told(why));
        }
        Ok(Taking { link, hello, sockets: frame.descriptors })
    }
}

/// A process on its way to replace another one.
#[derive(Debug)]
pub struct Taking {
    link: Link,
    hello: Hello,
    sockets: Vec<OwnedFd>,
}

impl Taking {
    /// The generation of the old process's config.
    pub fn generation(&self) -> u32 {
        self.hello.generation
    }

    /// How old the old process's clock of health is.
    pub fn clock(&self) -> Duration {
        self.hello.clock
    }

    /// The listening sockets.
    pub fn inherited(&mut self) -> Inherited {
        let names = std::mem::take(&mut self.hello.listeners);
        Inherited::handed(names.into_iter().zip(std::mem::take(&mut self.sockets)).collect())
    }

    /// Tells the old process why there will be no new one.
    pub async fn refuse(mut self, why: &str) {
        // When it does not hear, the end of this process tells it enough.
        let _ = self.link.send(kind::FAULT, why.as_bytes(), &[]).await;
    }

    /// Takes over: returns when this process serves. What is still to come, comes in the returned task.
    ///
    /// # Errors
    ///
    /// The old process goes on.
    pub async fn take_over(
        mut self,
        reload: &Arc<Reload>,
        bound: Bound,
    ) -> Result<impl Future<Output = ()> + Send + use<>, TalkFault> {
        reload.prepare().await;
        let front = Arc::clone(reload.front());
        say(&mut self.link, kind::READY, &Ready { settles: true }).await?;
        let take: Take = self.told().await?;
        front.metrics.carry(take.counted.clone());
        take.nodes.iter().for_each(|known| recall(&front, known));
        let mut coming = Coming::new(self.link, reload, (self.hello.settles, self.hello.generation));
        coming.govern(take).await;
        // Behind the first batch this process serves, also behind one without a tunnel. When the old process is dead,
        // nobody else is left to serve.
        match coming.batch().await {
            Ok(Next::Batch | Next::End) => {}
            Ok(Next::Settled) => return Err(TalkFault::Strange(kind::SETTLED)),
            Ok(Next::Last) => return Err(TalkFault::Strange(kind::LAST)),
            Err(fault) => return Err(fault),
        }
        reload.open_all(bound).await;
        service::taken_over(&report::status(&front));
        Ok(coming.rest())
    }

    /// What the old process says before it freezes a tunnel; until then it may ask whether this one is there.
    async fn told(&mut self) -> Result<Take, TalkFault> {
        loop {
            let frame = match expect(&mut self.link, kind::TAKE, WORD).await {
                Err(TalkFault::Strange(kind::PING)) => {
                    self.link.send(kind::PONG, &[], &[]).await?;
                    continue;
                }
                told => told?,
            };
            return read(&frame);
        }
    }
}

fn recall(front: &ProxyContext, known: &Known) {
    let found = nodes(&front.state.load()).into_iter().find(|(pool, node)| {
        *pool.config.name == *known.pool
            && node.node.id.as_str() == known.node
            && node.node.address.to_string() == known.address
    });
    if let Some((_, node)) = found {
        node.restore_health(&known.health, front.now());
    }
}
