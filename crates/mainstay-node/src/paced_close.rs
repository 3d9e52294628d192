//! The paced close of a node's clients at its end: spread over the drain time, by a [`CloseSchedule`].

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use mainstay_core::rate_limit::CloseSchedule;
use tokio::time::{Instant, sleep_until};

/// The longest time between two closes. A node with few clients ends before the drain time is over.
const MAX_INTERVAL: Duration = Duration::from_millis(50);

/// Calls `close` for each client, in random order and evenly over `window`; with few clients, over less. Returns after
/// the last one, or as soon as no client is connected any more.
pub(crate) async fn close_paced<T>(
    clients: Vec<T>,
    window: Duration,
    close: impl Fn(&T),
    is_any_connected: impl Fn() -> bool,
) {
    let begun = Instant::now();
    for (due, client) in in_order(clients, window) {
        if !is_any_connected() {
            return;
        }
        if begun.elapsed() < due {
            sleep_until(begun + due).await;
        }
        close(&client);
    }
}

/// The clients and when each is closed, soonest first.
fn in_order<T>(clients: Vec<T>, window: Duration) -> Vec<(Duration, T)> {
    let count = clients.len();
    let most = MAX_INTERVAL.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let seed = RandomState::new().hash_one(count);
    let schedule = CloseSchedule::new(count as u64, window.min(most), seed);
    let mut closes: Vec<_> =
        clients.into_iter().enumerate().map(|(index, client)| (schedule.due(index as u64), client)).collect();
    closes.sort_by_key(|(due, _)| *due);
    closes
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// When each of `count` clients is closed.
    async fn closes(count: u32, window: Duration) -> Vec<(Duration, u32)> {
        let (begun, closed) = (Instant::now(), RefCell::new(Vec::new()));
        let close = |client: &u32| closed.borrow_mut().push((begun.elapsed(), *client));
        close_paced((0..count).collect(), window, close, || true).await;
        closed.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn i11_every_client_is_closed_once_before_the_window_ends() {
        let window = Duration::from_secs(10);
        let closes = closes(5_000, window).await;
        let mut clients: Vec<u32> = closes.iter().map(|(_, client)| *client).collect();
        assert!(!clients.is_sorted(), "in random order");
        clients.sort_unstable();
        assert_eq!(clients, Vec::from_iter(0..5_000));
        assert!(closes.iter().all(|(at, _)| *at <= window));
        let first_half = closes.iter().filter(|(at, _)| *at < window / 2).count();
        assert!((2_400..2_600).contains(&first_half), "{first_half}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_clients_are_closed_before_the_window_ends() {
        let closes = closes(10, Duration::from_secs(60)).await;
        assert_eq!(closes.len(), 10);
        assert!(closes.iter().all(|(at, _)| *at <= MAX_INTERVAL * 10));
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_passes_without_a_window_or_when_the_last_client_has_left() {
        assert!(closes(100, Duration::ZERO).await.iter().all(|(at, _)| at.is_zero()));
        let begun = Instant::now();
        close_paced(vec![1, 2, 3], Duration::from_secs(9), |_| panic!("nobody is left"), || false).await;
        assert!(begun.elapsed().is_zero());
    }
}
