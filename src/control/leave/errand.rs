//! Seeing off those that are meant, and with them those that are on their way.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::Drain;
use crate::metrics::{DrainGauge, Meter};
use crate::proxy::ProxyContext;
use crate::proxy::drain::GRACE;
use crate::relay::{Closing, Departures, Which};
use crate::shutdown::Phase;

/// How long the closing waits for sessions that are on their way, so that it need not be planned twice.
const SOON: Duration = Duration::from_millis(100);

/// How long after the last tunnel its clients may still come back: the longest pauses of clients that come back by
/// themselves are half of that (SignalR's last one).
const COMING_BACK: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Errand {
    front: Arc<ProxyContext>,
    which: Which,
    closing: Closing,
    coming: OnTheWay,
    /// Where the progress is counted; `None` for what has no numbers of its own.
    meter: Option<Arc<Meter>>,
    progress: Arc<Progress>,
    /// Kept until those who were seen off have come back elsewhere.
    departing: Option<Departing>,
}

/// Who is meant and not there yet.
pub(super) enum OnTheWay {
    /// Sessions that have begun under these generations; each is cancelled when nobody sees it any more.
    Generations(Vec<CancellationToken>),
    /// Tunnels that come from another process; cancelled when all are here.
    Arrivals(CancellationToken),
}

/// How many have left.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<(usize, Option<Departures>)>);

impl Progress {
    /// So many have left before.
    pub fn after(closed: usize) -> Self {
        Self(Mutex::new((closed, None)))
    }

    /// How many have left.
    pub fn closed(&self) -> usize {
        let (before, departures) = &*self.0.lock();
        before + departures.as_ref().map_or(0, Departures::closed)
    }

    /// A closing begins.
    fn begin(&self, departures: Departures) {
        self.0.lock().1 = Some(departures);
    }

    /// The closing ends, whoever it has still to tell.
    fn end(&self) {
        let (before, last) = &mut *self.0.lock();
        *before += last.take().map_or(0, |last| last.closed());
    }
}

impl Errand {
    /// For tunnels that leave as `drain` says. Whether their clients come back to this pool: it is told then.
    pub fn new(
        front: &Arc<ProxyContext>,
        which: Which,
        (drain, departing): (&Drain, Option<&Arc<str>>),
        (coming, meter): (OnTheWay, Option<Arc<Meter>>),
        progress: &Arc<Progress>,
    ) -> Self {
        Self {
            front: Arc::clone(front),
            which,
            closing: Closing {
                code: drain.code,
                reason: drain.reason.as_str().into(),
                over: drain.over,
                grace: GRACE,
            },
            coming,
            meter,
            progress: Arc::clone(progress),
            departing: departing.map(|pool| Departing::begin(front, pool)),
        }
    }

    /// Returns when none is left, when they may stay, or when all tunnels are being closed anyway. `stop` is
    /// cancelled at the end.
    pub async fn run(self, stop: CancellationToken) {
        {
            let _ended = stop.clone().drop_guard();
            tokio::select! {
                () = self.see_off() => {}
                () = stop.cancelled() => return,
                () = self.front.shutdown.reached(Phase::Draining) => return,
                // The process that has taken over sees them off.
                () = self.front.shutdown.relieved() => return,
            }
        }
        // Its numbers end with its last tunnel.
        drop(self.meter);
        if self.departing.is_some() {
            tokio::select! {
                () = tokio::time::sleep(COMING_BACK) => {}
                () = self.front.shutdown.reached(Phase::Draining) => {}
                () = self.front.shutdown.relieved() => {}
            }
        }
    }

    async fn see_off(&self) {
        match &self.coming {
            OnTheWay::Generations(generations) => self.see_off_with(generations).await,
            OnTheWay::Arrivals(arrived) => {
                let relay = &self.front.relay;
                let leaving = self.note(relay.close_on(self.which.clone(), &self.closing), self.closing.over);
                arrived.cancelled().await;
                leaving.0.finished().await;
            }
        }
    }

    async fn see_off_with(&self, generations: &[CancellationToken]) {
        let begun = Instant::now();
        let mut arrived = pin!(async {
            for generation in generations {
                generation.cancelled().await;
            }
        });
        if tokio::time::timeout(SOON, &mut arrived).await.is_err() {
            // A node takes its time to answer a handshake: the others do not wait for that one.
            let _first = self.close(self.closing.over);
            arrived.await;
            self.progress.end();
        }
        self.close(self.closing.over.saturating_sub(begun.elapsed())).0.finished().await;
    }

    /// Begins to close those that are there.
    fn close(&self, over: Duration) -> Stopped {
        let closing = Closing { over, ..self.closing.clone() };
        self.note(self.front.relay.close_some(self.which.clone(), &closing), over)
    }

    /// Shows how far it is.
    fn note(&self, departures: Departures, over: Duration) -> Stopped {
        self.progress.begin(departures.clone());
        if let Some(meter) = &self.meter {
            let deadline = SystemTime::now().checked_add(over + GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
            let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let progress = Arc::clone(&self.progress);
            meter.drain(Some(DrainGauge { closed: Box::new(move || progress.closed()), deadline }));
        }
        Stopped(departures)
    }
}

/// A node that was taken out of a pool and is being left: until this is dropped, its pool knows.
struct Departing {
    front: Arc<ProxyContext>,
    pool: Arc<str>,
}

impl Departing {
    fn begin(front: &Arc<ProxyContext>, pool: &Arc<str>) -> Self {
        let departing = Self { front: Arc::clone(front), pool: Arc::clone(pool) };
        departing.note(true);
        departing
    }

    fn note(&self, is_departing: bool) {
        if let Some(pool) = self.front.state.load().pools.get(&self.pool) {
            pool.note_departing(is_departing);
        }
    }
}

impl Drop for Departing {
    fn drop(&mut self) {
        self.note(false);
    }
}

/// Departures that end with this: whoever has not been told to leave stays.
struct Stopped(Departures);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stop();
    }
}
