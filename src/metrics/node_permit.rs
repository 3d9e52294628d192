//! The permits of the tunnels on a node: the count of live tunnels, and the limit on them.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::node_meter::NodeMeter;

impl NodeMeter {
    /// Counts one tunnel as open until the permit is dropped.
    pub fn acquire_permit(self: &Arc<Self>) -> NodePermit {
        self.live.fetch_add(1, Relaxed);
        NodePermit(Arc::clone(self))
    }

    /// The same, unless `most` are open already. Of any number of concurrent callers, no more than that get a permit.
    pub(crate) fn try_acquire_permit(self: &Arc<Self>, most: u32) -> Option<NodePermit> {
        let more = |live: u32| (live < most).then(|| live + 1);
        self.live.fetch_update(Relaxed, Relaxed, more).ok().map(|_| NodePermit(Arc::clone(self)))
    }
}

/// Counts one tunnel of a node while it lives.
#[derive(Debug)]
pub struct NodePermit(Arc<NodeMeter>);

impl Deref for NodePermit {
    type Target = Arc<NodeMeter>;

    fn deref(&self) -> &Arc<NodeMeter> {
        &self.0
    }
}

impl Drop for NodePermit {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    fn meter() -> Arc<NodeMeter> {
        Arc::new(NodeMeter::new("chat".into(), "ws1".into(), 2))
    }

    #[test]
    fn a_tunnel_is_live_until_its_permit_is_dropped() {
        let meter = meter();
        let permits: Vec<NodePermit> = (0..3).map(|_| meter.acquire_permit()).collect();
        assert_eq!(meter.live(), 3);
        assert_eq!(permits[0].node.as_ref(), "ws1");
        drop(permits);
        assert_eq!(meter.live(), 0);
    }

    #[test]
    fn however_many_ask_at_once_no_more_than_the_limit_get_a_permit() {
        let (meter, holders, refused) = (meter(), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(permit) = meter.try_acquire_permit(2) else {
                            refused.fetch_add(1, Relaxed);
                            continue;
                        };
                        assert!(holders.fetch_add(1, Relaxed) < 2);
                        thread::yield_now();
                        holders.fetch_sub(1, Relaxed);
                        drop(permit);
                    }
                });
            }
        });
        assert!(refused.into_inner() > 0, "they never met");
        assert_eq!(meter.live(), 0);
        assert!(meter.try_acquire_permit(0).is_none());
    }
}
