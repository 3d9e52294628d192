//! The status line and the watchdog messages for the service manager.
//!
//! The watchdog is notified while the tokio runtime makes progress (a timer fires, a new task runs) and the loop of every
//! relay thread turns. Whether new connections are accepted does not count: at a limit they rightly are not, and a restart
//! would cost every tunnel. The end of the process has its own deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::proxy::ProxyContext;
use crate::service;
use crate::shutdown::Phase;

/// How often the status is checked unless the watchdog needs more.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Reports until everything has stopped; returns at once without a service manager.
pub(crate) async fn run(context: Arc<ProxyContext>) {
    if !service::is_listening() {
        return;
    }
    let watchdog = service::watchdog_period();
    let mut ticks = interval(watchdog.map_or(CHECK_INTERVAL, |time| time / 2).min(CHECK_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = context.shutdown.wait_for(Phase::Stopped) => return,
            // The process that has taken over reports from now on.
            () = context.shutdown.wait_until_superseded() => return,
        }
        if let Some(time) = watchdog {
            // Half of the time is over: a quarter for the answers leaves a quarter.
            if is_responsive(&context, time / 4).await {
                service::notify_watchdog();
            } else {
                tracing::error!("relay thread does not respond, watchdog not notified");
            }
        }
        let line = status_line(&context);
        if line != reported {
            service::status(&line);
            reported = line;
        }
    }
}

/// The phase, the number of tunnels and the generation of the config, in one line.
pub(crate) fn status_line(context: &ProxyContext) -> String {
    let phase = match context.shutdown.phase() {
        Phase::Serving => "serving",
        Phase::Draining | Phase::Stopped => "draining",
    };
    let generation = context.state.load().generation;
    format!("{phase}, tunnels: {}, generation: {generation}", context.relay.tunnel_count())
}

async fn is_responsive(context: &Arc<ProxyContext>, within: Duration) -> bool {
    if context.shutdown.phase() != Phase::Serving {
        return true;
    }
    let mut asked = JoinSet::new();
    asked.spawn(timeout(within, context.relay.wait_one_tick()));
    matches!(asked.join_next().await, Some(Ok(Ok(true))))
}
