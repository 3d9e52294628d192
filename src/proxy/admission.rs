//! Admission control: the permits of connections, the sessions that poll, and the rate of handshakes.
//!
//! The counts live here and outlive every generation; the limits are those of the generation that asks. A handshake
//! over the rate waits in a short queue that is fair among clients, and is rejected when the queue is full or slow: a
//! reconnect storm costs the nodes no more than the rate, and delays each client by its turn.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::polling_session::PollingSessions;
use crate::http::reply::ProxyError;
use crate::net::connection_limit::{ConnectionLimiter, client_prefix};
use crate::rate_limit::{FairQueue, TokenBucket};

/// The longest that a handshake waits for its turn: within what a client's own connect timeout leaves.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// The most handshakes that wait, whatever the rate: each holds a connection and its request head.
const MAX_QUEUED: usize = 10_000;
/// Refused connections at a time that get a response; the others are closed without one.
const MAX_REFUSAL_SLOTS: usize = 32;
/// The least time from one look at the queue to the next.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long handshakes whose client has left may stay in the queue: a search looks at all of it.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// The least seconds over which Retry-After spreads rejected handshakes.
const MIN_RETRY_SPREAD: u64 = 5;
/// The most: with more, the storm is over before they are back.
const MAX_RETRY_SPREAD: u64 = 300;

/// The limits on connections and handshakes of a process.
pub(crate) struct AdmissionControl {
    /// The client connections.
    pub connections: Arc<ConnectionLimiter>,
    /// The sessions that clients have opened by polling.
    pub(super) polling: Arc<PollingSessions>,
    /// Room for responses to refused connections.
    pub refusal_slots: Arc<Semaphore>,
    /// The zero of the bucket's clock.
    started: Instant,
    waiting: Mutex<HandshakeQueue>,
}

/// The handshakes that wait.
#[derive(Default)]
struct HandshakeQueue {
    bucket: TokenBucket,
    queue: FairQueue<IpAddr, oneshot::Sender<()>>,
    /// The rate that was asked for last, in handshakes a second.
    rate: u32,
    /// When handshakes whose client has left were last removed, on the bucket's clock.
    swept_at: Duration,
    /// Rejected since the queue was empty.
    rejected: u64,
    /// A task releases waiting handshakes.
    is_running: bool,
}

impl AdmissionControl {
    /// Nothing is counted yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::default(),
            polling: PollingSessions::new(),
            refusal_slots: Arc::new(Semaphore::new(MAX_REFUSAL_SLOTS)),
            started: Instant::now(),
            waiting: Mutex::default(),
        })
    }

    /// Waits for the turn of a handshake of `client` at `rate` a second; 0 is no limit. `tasks` owns the task
    /// that releases waiting handshakes.
    ///
    /// # Errors
    ///
    /// [`ProxyError::HandshakeRateLimit`] when it is not its turn soon enough.
    pub(crate) async fn await_handshake_turn(
        self: &Arc<Self>,
        client: IpAddr,
        rate: u32,
        tasks: &TaskTracker,
    ) -> Result<(), ProxyError> {
        if rate == 0 {
            return Ok(());
        }
        let Some(turn) = self.enqueue(client, rate, tasks)? else { return Ok(()) };
        match tokio::time::timeout(MAX_WAIT, turn).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.waiting.lock().reject()),
        }
    }

    /// Its place in the queue; `None` where its turn is now.
    fn enqueue(
        self: &Arc<Self>,
        client: IpAddr,
        rate: u32,
        tasks: &TaskTracker,
    ) -> Result<Option<oneshot::Receiver<()>>, ProxyError> {
        let mut waiting = self.waiting.lock();
        waiting.rate = rate;
        if waiting.queue.is_empty() && waiting.bucket.take(rate, self.started.elapsed()).is_ok() {
            return Ok(None);
        }
        // No more than are released within the longest wait.
        let room = (rate as usize).saturating_mul(MAX_WAIT.as_secs() as usize).min(MAX_QUEUED);
        let (turn, awaited) = oneshot::channel();
        // One that makes way for it sees the end of its channel.
        if waiting.queue.push(client_prefix(client), turn, room).is_err() {
            return Err(waiting.reject());
        }
        if !std::mem::replace(&mut waiting.is_running, true) {
            tasks.spawn(run_queue(Arc::clone(self)));
        }
        Ok(Some(awaited))
    }
}

impl HandshakeQueue {
    fn reject(&mut self) -> ProxyError {
        self.rejected += 1;
        // They come back at half the rate, which leaves the other half to new clients.
        let needed = self.rejected.saturating_mul(2) / u64::from(self.rate.max(1));
        ProxyError::HandshakeRateLimit { spread: needed.clamp(MIN_RETRY_SPREAD, MAX_RETRY_SPREAD) }
    }

    /// Releases the handshakes whose turn it is. Gives the time until the next one; `None` when the queue is empty.
    fn release_due(&mut self, now: Duration) -> Option<Duration> {
        if now.saturating_sub(self.swept_at) >= SWEEP_INTERVAL {
            self.swept_at = now;
            self.queue.retain(|turn| !turn.is_closed());
        }
        while !self.queue.is_empty() {
            if let Err(wait) = self.bucket.take(self.rate, now) {
                return Some(wait);
            }
            while self.queue.pop().is_some_and(|turn| turn.send(()).is_err()) {}
        }
        self.is_running = false;
        self.rejected = 0;
        None
    }
}

/// Releases waiting handshakes until the queue is empty.
async fn run_queue(admission: Arc<AdmissionControl>) {
    loop {
        let wait = admission.waiting.lock().release_due(admission.started.elapsed());
        let Some(wait) = wait else { return };
        tokio::time::sleep(wait.max(MIN_POLL_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[tokio::test]
    async fn a_storm_is_let_in_at_the_pace_and_the_rest_is_sent_away_over_a_time_that_fits() {
        let (admission, tasks) = (AdmissionControl::new(), TaskTracker::new());
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..400_u32 {
            let (admission, tasks) = (Arc::clone(&admission), tasks.clone());
            asked.spawn(async move {
                admission.await_handshake_turn(client((number % 200) as u8), 50, &tasks).await
            });
        }
        let (mut let_in, mut widest) = (0, 0);
        while let Some(answer) = asked.join_next().await {
            match answer.unwrap() {
                Ok(()) => let_in += 1,
                Err(ProxyError::HandshakeRateLimit { spread }) => widest = widest.max(spread),
                Err(other) => panic!("{other:?}"),
            }
        }
        // Five at once, and those of the one second that they wait.
        assert!((30..=56).contains(&let_in), "{let_in}");
        assert!((12..=14).contains(&widest), "{widest}");
        tasks.close();
        tasks.wait().await;
        assert!(admission.waiting.lock().queue.is_empty());
    }

    #[tokio::test]
    async fn a_client_with_many_requests_delays_another_by_one() {
        let (admission, tasks) = (AdmissionControl::new(), TaskTracker::new());
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (admission, tasks) = (Arc::clone(&admission), tasks.clone());
            asked.spawn(async move { admission.await_handshake_turn(client(1), 20, &tasks).await });
        }
        tokio::task::yield_now().await;
        // The loud one has the whole queue; the quiet ones get a turn all the same.
        for quiet in 2..6 {
            assert_eq!(admission.await_handshake_turn(client(quiet), 20, &tasks).await, Ok(()), "{quiet}");
        }
        let mut of_loud = 0;
        while let Some(answer) = asked.join_next().await {
            of_loud += usize::from(answer.unwrap().is_ok());
        }
        assert!((5..=25).contains(&of_loud), "{of_loud}");
    }

    #[tokio::test]
    async fn without_a_rate_nobody_waits() {
        let (admission, tasks) = (AdmissionControl::new(), TaskTracker::new());
        for _ in 0..10_000 {
            assert_eq!(admission.await_handshake_turn(client(1), 0, &tasks).await, Ok(()));
        }
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn who_has_left_costs_nobody_a_turn() {
        let (admission, tasks) = (AdmissionControl::new(), TaskTracker::new());
        assert_eq!(admission.await_handshake_turn(client(1), 1, &tasks).await, Ok(()));
        let gone = admission.enqueue(client(2), 1, &tasks).unwrap();
        drop(gone);
        admission.waiting.lock().queue.retain(|turn| !turn.is_closed());
        assert_eq!(admission.waiting.lock().release_due(Duration::from_secs(5)), None);
        assert_eq!(
            admission.waiting.lock().bucket.take(1, Duration::from_secs(5)),
            Ok(()),
            "the turn is left"
        );
    }
}
