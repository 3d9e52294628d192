//! What comes to the new process from the old one: what governs the tunnels, the tunnels, and last words.
//!
//! What governs tunnels comes before the first of them. What comes later only adds to the counts: an operator may have
//! changed here meanwhile what the old process still believes.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::link::{TalkFault, arrivals, read};
use super::steps::{Came, Take as Do, Taker};
use super::words::{Drained, Known, Last, Take, kind};
use crate::config::Drain;
use crate::control::Reload;
use crate::control::rebalance::Unfinished;
use crate::control::removal::RemovalSnapshot;
use crate::net::handover::{Frame, Link, LinkFault};
use crate::proxy::drain::{self, ActiveDrain, DrainProgress, DrainSnapshot};
use crate::relay::parcel::Counts;
use crate::relay::{Arrival, Held};
use crate::shutdown::Phase;

/// What came.
pub(super) enum Next {
    /// A batch, which is carried now, or was taken back.
    Batch,
    /// All tunnels have come that were there.
    Settled,
    /// The last word.
    Last,
    /// The old process is gone.
    End,
}

/// What is still to come from the old process.
pub(super) struct Coming {
    link: Link,
    reload: Arc<Reload>,
    /// The old process says what governs its tunnels before it gives them, and when all have come that were there.
    settles: bool,
    /// The first generation of this process.
    generation: u32,
    /// Cancelled when all tunnels have come that were there.
    settled: CancellationToken,
    /// Cancelled when nothing comes any more.
    ended: CancellationToken,
    /// The drains that go on here, each with what it had closed.
    drains: Vec<(Drained, Arc<ActiveDrain>)>,
    /// To go on with when the tunnels are here.
    rebalances: Vec<Unfinished>,
    /// What the old process had under way of what is gone.
    left: Vec<RemovalSnapshot>,
    /// Where the old process knows its nodes.
    nodes: Vec<Known>,
    /// Pool, node and route of what is seen off because the config of this process does not have it. Of a node the route
    /// is empty, of a route the node.
    gone: HashSet<[Arc<str>; 3]>,
}

impl Coming {
    /// Whether the old process settles, and the generation of its config.
    pub fn new(link: Link, reload: &Arc<Reload>, (settles, generation): (bool, u32)) -> Self {
        let (settled, ended) = reload.predecessor().is_there();
        if !settles {
            // It does not say when.
            settled.cancel();
        }
        Self {
            link,
            reload: Arc::clone(reload),
            settles,
            generation: generation + 1,
            settled,
            ended,
            drains: Vec::new(),
            rebalances: Vec::new(),
            left: Vec::new(),
            nodes: Vec::new(),
            gone: HashSet::new(),
        }
    }

    /// Goes on with what governs the tunnels that are going to come.
    pub async fn govern(&mut self, take: Take) {
        take.drains.into_iter().for_each(|drain| self.drain(drain));
        self.reload.resume_removals(&take.left, &self.ended).await;
        (self.left, self.nodes, self.rebalances) = (take.left, take.nodes, take.rebalances);
    }

    /// A node that the new config does not have is seen off as such.
    fn drain(&mut self, drained: Drained) {
        let resumed = drain::resume(self.reload.front(), &snapshot(&drained), self.settled.clone());
        self.drains.extend(resumed.map(|drain| (drained, drain)));
    }

    /// All that comes behind the first batch.
    pub async fn rest(mut self) {
        let shutdown = self.reload.front().shutdown.clone();
        tokio::select! {
            () = self.all() => {}
            () = shutdown.reached(Phase::Stopped) => {}
        }
        self.settle();
        self.ended.cancel();
        self.reload.forget_strangers();
        tracing::info!("the process before this one has ended");
    }

    async fn all(&mut self) {
        loop {
            match self.batch().await {
                Ok(Next::Batch) => {}
                Ok(Next::Settled) => self.settle(),
                Ok(Next::Last | Next::End) => return,
                Err(fault) => {
                    tracing::error!(%fault, "what is left of the old process stays there");
                    return;
                }
            }
        }
    }

    /// All tunnels are here that were there.
    fn settle(&mut self) {
        for one in std::mem::take(&mut self.rebalances) {
            self.reload.rebalances().resume(&one);
        }
        self.settled.cancel();
    }

    /// The next batch, from its first piece to the moment that its tunnels are carried; or what else comes.
    pub async fn batch(&mut self) -> Result<Next, TalkFault> {
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
                kind::PING => self.link.send(kind::PONG, &[], &[]).await?,
                kind::PIECE => match arrivals(frame) {
                    Ok(more) => arrived.extend(more),
                    Err(fault) => return Err(self.refuse(taker, arrived, fault.to_string()).await),
                },
                kind::WHOLE => return self.hold(taker, arrived).await,
                kind::BACK => {
                    taker.hear(Came::Back);
                    drop(arrived);
                    self.link.send(kind::FREED, &[], &[]).await?;
                    return Ok(Next::Batch);
                }
                kind::SETTLED => return Ok(Next::Settled),
                kind::LAST => {
                    self.last(read(&frame)?);
                    return Ok(Next::Last);
                }
                other => return Err(TalkFault::Strange(other)),
            }
        }
    }

    /// The old process's last words.
    fn last(&mut self, last: Last) {
        self.reload.front().metrics.carry(last.counted);
        if !self.settles {
            // It has said nothing before of what governs its tunnels.
            last.drains.into_iter().for_each(|drain| self.drain(drain));
            self.rebalances = last.rebalances;
            return;
        }
        for now in &last.drains {
            let is_it = |(before, _): &&(Drained, _)| before.pool == now.pool && before.node == now.node;
            if let Some((before, drain)) = self.drains.iter().find(is_it) {
                drain.add_closed(now.closed.saturating_sub(before.closed));
            }
        }
    }

    async fn hold(&mut self, mut taker: Taker, arrived: Vec<Arrival>) -> Result<Next, TalkFault> {
        let front = Arc::clone(self.reload.front());
        let counts = Counts { metrics: &front.metrics, places: &front.admission.connections };
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
            Ok(Some(frame)) if frame.kind == kind::BACK => (Came::Back, Next::Batch),
            Ok(Some(frame)) => return Err(TalkFault::Strange(frame.kind)),
            Ok(None) | Err(_) => (Came::End, Next::End),
        };
        if taker.hear(came) == Do::Carry {
            let places: HashSet<_> = held.places().collect();
            held.go(&front.relay);
            self.see_off(places).await;
        } else {
            held.discard();
            self.link.send(kind::FREED, &[], &[]).await?;
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

    /// Begins to close the tunnels whose node or route the new config does not have, as a reload would: those that have
    /// come and those that will. `places` is pool, node and route of some.
    async fn see_off(&mut self, places: HashSet<[Arc<str>; 3]>) {
        let config = self.reload.config();
        let mut left = Vec::new();
        for [pool, node, route] in places {
            let known = config.pools.iter().find(|known| known.name == pool);
            let drain = known.map_or_else(Drain::default, |known| known.drain.clone());
            let has =
                |known: &crate::config::Pool| known.nodes.iter().any(|known| known.id.as_str() == &*node);
            let gone = if !known.is_some_and(has) {
                [pool, node, "".into()]
            } else if !config.routes.iter().any(|known| known.name() == *route && known.pool == pool) {
                [pool, "".into(), route]
            } else {
                continue;
            };
            if self.gone.insert(gone.clone()) {
                left.push(self.begins_to_leave(gone, drain));
            }
        }
        if !left.is_empty() {
            self.reload.resume_removals(&left, &self.ended).await;
        }
    }

    /// Whoever does not leave already, of all generations before this process.
    fn begins_to_leave(&self, [pool, node, route]: [Arc<str>; 3], drain: Drain) -> RemovalSnapshot {
        let leaves =
            |left: &&RemovalSnapshot| *left.pool == *pool && *left.node == *node && *left.route == *route;
        let since = self.left.iter().filter(leaves).map(|left| left.before).max();
        let known = self.nodes.iter().find(|known| *known.pool == *pool && *known.node == *node);
        RemovalSnapshot {
            pool: pool.to_string(),
            node: node.to_string(),
            address: known.map(|known| known.address.clone()).unwrap_or_default(),
            route: route.to_string(),
            since: since.unwrap_or(0),
            before: self.generation,
            over: drain.over,
            code: drain.code,
            reason: drain.reason,
            closed: 0,
            is_known: since.is_some(),
        }
    }
}

fn snapshot(drain: &Drained) -> DrainSnapshot {
    DrainSnapshot {
        pool: drain.pool.clone(),
        node: drain.node.clone(),
        is_ordered: drain.is_ordered,
        order: Drain { over: drain.over, code: drain.code, reason: drain.reason.clone() },
        progress: DrainProgress { elapsed: drain.elapsed, closed: drain.closed },
    }
}
