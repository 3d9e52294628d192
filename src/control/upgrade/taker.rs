//! The new process: takes everything from the old one.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::link::{TalkFault, arrivals, expect, read};
use super::program::VARIABLE;
use super::steps::{Came, Take as Do, Taker};
use super::words::{Drained, Hello, Known, Last, Take, VERSION, kind};
use crate::config::Drain;
use crate::control::drain;
use crate::control::probe::nodes;
use crate::control::{Bound, Reload, report};
use crate::net::handover::{Frame, Link, LinkFault, fault_frame, from_parent};
use crate::net::inherit::Inherited;
use crate::proxy::Front;
use crate::proxy::drain::SoFar;
use crate::relay::parcel::Counts;
use crate::relay::{Arrival, Closing, Held, Which};
use crate::service;

/// The old process says everything that it has to say within this.
const WORD: Duration = Duration::from_secs(30);
/// How long each tunnel waits for its peers' answers to a Close.
const GRACE: Duration = Duration::from_secs(5);

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
    /// The old process has not gone on to the point of no return.
    pub async fn take_over(
        mut self,
        reload: &Arc<Reload>,
        bound: Bound,
    ) -> Result<impl Future<Output = ()> + Send + use<>, TalkFault> {
        reload.prepare().await;
        let front = Arc::clone(reload.front());
        self.link.send(kind::READY, &[], &[]).await?;
        let take: Take = read(&expect(&mut self.link, kind::TAKE, WORD).await?)?;
        front.metrics.carry(take.counted);
        take.nodes.iter().for_each(|known| recall(&front, known));
        let mut coming = Coming { link: self.link, reload: Arc::clone(reload), strangers: HashSet::new() };
        // The first batch is the point of no return, also one without a tunnel. When the old process is dead, nobody
        // else is left to serve.
        match coming.batch().await {
            Ok(Next::Batch | Next::End) => {}
            Ok(Next::Last) => return Err(TalkFault::Strange(kind::LAST)),
            Err(fault) => return Err(fault),
        }
        reload.open_all(bound).await;
        service::taken_over(&report::status(&front));
        Ok(coming.rest())
    }
}

fn recall(front: &Front, known: &Known) {
    let found = nodes(&front.state.load()).into_iter().find(|(pool, node)| {
        *pool.config.name == *known.pool
            && node.node.id.as_str() == known.node
            && node.node.address.to_string() == known.address
    });
    if let Some((_, node)) = found {
        node.recall(&known.health, front.now());
    }
}

fn snapshot(drain: Drained) -> drain::Snapshot {
    drain::Snapshot {
        pool: drain.pool,
        node: drain.node,
        is_ordered: drain.is_ordered,
        order: Drain { over: drain.over, code: drain.code, reason: drain.reason },
        so_far: SoFar { elapsed: drain.elapsed, closed: drain.closed },
    }
}

/// What came.
enum Next {
    /// A batch, which is carried now.
    Batch,
    /// The last word.
    Last,
    /// The old process is gone.
    End,
}

/// What is still to come from the old process.
struct Coming {
    link: Link,
    reload: Arc<Reload>,
    /// Pool, node and route of what came.
    strangers: HashSet<[Arc<str>; 3]>,
}

impl Coming {
    async fn rest(mut self) {
        loop {
            match self.batch().await {
                Ok(Next::Batch) => {}
                Ok(Next::Last | Next::End) => break,
                Err(fault) => {
                    tracing::error!(%fault, "what is left of the old process stays there");
                    break;
                }
            }
        }
        self.see_off();
        tracing::info!("the process before this one has ended");
    }

    /// The next batch, from its first piece to the moment that its tunnels are carried.
    async fn batch(&mut self) -> Result<Next, TalkFault> {
        let mut taker = Taker::waiting();
        let mut arrived: Vec<Arrival> = Vec::new();
        loop {
            let frame = match self.link.receive().await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(LinkFault::BrokenOff) => {
                    // What came of a batch that is not whole is closed here.
                    taker.hear(Came::End);
                    return Ok(Next::End);
                }
                Err(fault) => return Err(self.refuse(taker, arrived, fault.to_string()).await),
            };
            match frame.kind {
                kind::PIECE => match arrivals(frame) {
                    Ok(more) => arrived.extend(more),
                    Err(fault) => return Err(self.refuse(taker, arrived, fault.to_string()).await),
                },
                kind::WHOLE => return self.hold(taker, arrived).await,
                kind::LAST => {
                    let last: Last = read(&frame)?;
                    let front = self.reload.front();
                    front.metrics.carry(last.counted);
                    for drain in last.drains {
                        // A node that the new config does not have is seen off as such.
                        drain::resume(front, &snapshot(drain));
                    }
                    last.rebalances.iter().for_each(|one| self.reload.rebalances().resume(one));
                    return Ok(Next::Last);
                }
                other => return Err(TalkFault::Strange(other)),
            }
        }
    }

    async fn hold(&mut self, mut taker: Taker, arrived: Vec<Arrival>) -> Result<Next, TalkFault> {
        let front = Arc::clone(self.reload.front());
        let counts = Counts { metrics: &front.metrics, places: &front.admission().places };
        let held = match Held::new(arrived, counts) {
            Ok(held) => held,
            Err(fault) => return Err(self.refuse(taker, Vec::new(), fault.to_string()).await),
        };
        taker.hear(Came::Whole);
        // When this does not reach it, it is dead or will kill this process.
        let _ = self.link.send(kind::HELD, &[], &[]).await;
        let word: Result<Option<Frame>, _> = self.link.receive().await;
        let (came, next) = match word {
            Ok(Some(frame)) if frame.kind == kind::GO => (Came::Go, Next::Batch),
            Ok(Some(frame)) => return Err(TalkFault::Strange(frame.kind)),
            Ok(None) | Err(_) => (Came::End, Next::End),
        };
        if taker.hear(came) == Do::Carry {
            self.strangers.extend(held.places());
            held.go(&front.relay);
        }
        Ok(next)
    }

    /// Closes what came of a batch, and only then says that it is not held and never will be.
    async fn refuse(&mut self, mut taker: Taker, arrived: Vec<Arrival>, why: String) -> TalkFault {
        taker.hear(Came::Unfit);
        drop(arrived);
        // When this does not reach it, it is dead or will kill this process.
        let _ = self.link.send(kind::FAULT, why.as_bytes(), &[]).await;
        TalkFault::Told(why)
    }

    /// Closes the tunnels whose node or route the new config does not have, as a reload would.
    fn see_off(&self) {
        let (front, config) = (self.reload.front(), self.reload.config());
        let mut which: Vec<(Which, Drain)> = Vec::new();
        for [pool, node, route] in &self.strangers {
            let known = config.pools.iter().find(|known| *known.name == **pool);
            let drain = known.map_or_else(Drain::default, |known| known.drain.clone());
            let has =
                |known: &crate::config::Pool| known.nodes.iter().any(|known| known.id.as_str() == &**node);
            let gone = if !known.is_some_and(has) {
                Which::Node { pool: Arc::clone(pool), node: Arc::clone(node) }
            } else if !config.routes.iter().any(|known| known.name() == **route && known.pool == *pool) {
                Which::Route { pool: Arc::clone(pool), route: Arc::clone(route) }
            } else {
                continue;
            };
            if which.iter().all(|(known, _)| *known != gone) {
                which.push((gone, drain));
            }
        }
        for (which, drain) in which {
            let closing = Closing {
                code: drain.code,
                reason: drain.reason.as_str().into(),
                over: drain.over,
                grace: GRACE,
            };
            drop(front.relay.close_some(which, &closing));
        }
    }
}
