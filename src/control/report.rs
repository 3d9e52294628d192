//! What the service manager hears from a running balancer: its status, and that it is alive.
//!
//! Alive means that the front desk runs what it is given (a timer fires, a new task gets its turn) and that every
//! relay thread turns. Whether new connections are accepted is not part of it: at a limit they rightly are not, and a
//! restart would cost every tunnel. Once the end has begun, its own deadline watches over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::proxy::ProxyContext;
use crate::service;
use crate::shutdown::Phase;

/// How often the status is looked at when no watchdog asks for more.
const USUAL: Duration = Duration::from_secs(10);

/// Reports until everything has stopped; returns at once where nobody listens.
pub async fn run(front: Arc<ProxyContext>) {
    if !service::is_listening() {
        return;
    }
    let watchdog = service::watchdog_period();
    let mut ticks = interval(watchdog.map_or(USUAL, |time| time / 2).min(USUAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = front.shutdown.wait_for(Phase::Stopped) => return,
            // The process that has taken over speaks for the service now.
            () = front.shutdown.wait_until_superseded() => return,
        }
        if let Some(time) = watchdog {
            // With half of the time gone already, a quarter for the answers leaves a quarter.
            if is_alive(&front, time / 4).await {
                service::notify_watchdog();
            } else {
                tracing::error!("no sign of life from a relay thread, the watchdog is not told");
            }
        }
        let now = status(&front);
        if now != said {
            service::status(&now);
            said = now;
        }
    }
}

/// One line: what it does, tunnels, generation.
pub fn status(front: &ProxyContext) -> String {
    let phase = match front.shutdown.phase() {
        Phase::Serving => "serving",
        Phase::Draining | Phase::Stopped => "draining",
    };
    let generation = front.state.load().generation;
    format!("{phase}, tunnels: {}, generation: {generation}", front.relay.tunnel_count())
}

async fn is_alive(front: &Arc<ProxyContext>, within: Duration) -> bool {
    if front.shutdown.phase() != Phase::Serving {
        return true;
    }
    let mut asked = JoinSet::new();
    asked.spawn(timeout(within, front.relay.wait_one_tick()));
    matches!(asked.join_next().await, Some(Ok(Ok(true))))
}
