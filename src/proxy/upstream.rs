//! A node as it is dialled: its health, its meter and its kept-alive HTTP connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::config::{self, Probe};
use crate::http::Body;
use crate::metrics::{Meter, Metrics};
use crate::net::dial::{DialFault, Target, dial};
use crate::net::stream::Stream;
use crate::pool::health::{Change, Health};
use crate::pool::pick::Load;
use crate::pool::{Address, Node, State};

/// How long an unused connection is kept: less than the 5 s after which Node.js closes it.
const KEPT: Duration = Duration::from_secs(4);
/// Unused connections kept per node.
const MOST_KEPT: usize = 256;

/// See the module.
pub struct Upstream {
    /// What the config says.
    pub node: Node,
    /// Its counters.
    pub meter: Arc<Meter>,
    connect: Duration,
    health: Mutex<Health>,
    /// Unused connections and since when they are; `None` once they have been let go of.
    kept: Mutex<Option<Vec<(Instant, SendRequest<Body>)>>>,
}

/// A connection to send a request on.
pub struct Lease {
    /// The sender.
    pub sender: SendRequest<Body>,
    /// It has carried a request before, so it may be stale.
    pub is_reused: bool,
}

impl Upstream {
    /// Not dialled yet.
    pub fn new(node: &Node, pool: &config::Pool, metrics: &Metrics) -> Self {
        let meter = metrics.node(&pool.name, node.id.as_str());
        meter.capacity(node.max_connections);
        let probed = pool.health.probe != Probe::Off;
        let health = if probed { Health::new(pool.rule) } else { Health::unprobed(pool.rule) };
        meter.state(health.state(Duration::ZERO).as_str());
        Self {
            node: node.clone(),
            meter,
            connect: pool.timeouts.connect,
            health: Mutex::new(health),
            kept: Mutex::new(Some(Vec::new())),
        }
    }

    /// What the picker wants to know.
    pub fn load(&self, now: Duration) -> Load {
        let health = self.health.lock();
        Load { state: health.state(now), live: self.meter.live(), share: health.share(now) }
    }

    /// Takes clients now.
    pub fn is_up(&self, now: Duration) -> bool {
        self.health.lock().state(now) == State::Up
    }

    /// Changes the health, tells the meter, and logs what changed.
    pub fn judge(&self, now: Duration, judge: impl FnOnce(&mut Health) -> Option<Change>) {
        let mut health = self.health.lock();
        let change = judge(&mut health);
        self.meter.state(health.state(now).as_str());
        drop(health);
        let (pool, node) = (&*self.meter.pool, &*self.meter.node);
        match change {
            Some(change @ (Change::Down | Change::Ejected)) => {
                tracing::warn!(pool, node, %change, "node state changed");
            }
            Some(change) => tracing::info!(pool, node, %change, "node state changed"),
            None => {}
        }
    }

    /// A new connection.
    pub async fn dial(&self) -> Result<Stream, DialFault> {
        let target = match &self.node.address {
            Address::Tcp { host, port } => Target::Tcp { host, port: *port },
            Address::Unix(path) => Target::Unix(path),
        };
        dial(target, self.connect).await
    }

    /// A connection to send a plain request on: a kept one, or a new one when `fresh` or none is kept.
    pub async fn lease(&self, fresh: bool, tasks: &TaskTracker) -> Result<Lease, DialFault> {
        while !fresh && let Some((since, mut sender)) = self.pop() {
            if since.elapsed() < KEPT && !sender.is_closed() && sender.ready().await.is_ok() {
                return Ok(Lease { sender, is_reused: true });
            }
        }
        let stream = self.dial().await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|error| DialFault::Other(std::io::Error::other(error)))?;
        tasks.spawn(async move {
            // Its faults are seen by whoever waits for the answer.
            let _ = connection.await;
        });
        Ok(Lease { sender, is_reused: false })
    }

    fn pop(&self) -> Option<(Instant, SendRequest<Body>)> {
        self.kept.lock().as_mut()?.pop()
    }

    /// Keeps a connection whose answer has been read.
    pub fn keep(&self, sender: SendRequest<Body>) {
        let mut kept = self.kept.lock();
        let Some(kept) = kept.as_mut() else { return };
        if !sender.is_closed() && kept.len() < MOST_KEPT {
            kept.push((Instant::now(), sender));
        }
        let first = kept.partition_point(|(since, _)| since.elapsed() >= KEPT);
        kept.drain(..first);
    }

    /// Lets go of every unused connection, and from now on of each that is through with its answer: one that is kept
    /// would hold up the end until its node closes it.
    pub fn release(&self) {
        *self.kept.lock() = None;
    }
}
