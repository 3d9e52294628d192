//! Watches the files of the config, and reloads it when they have changed.
//!
//! inotify watches directories, not files: an editor renames a new file over the old one, and Kubernetes swaps a
//! symbolic link (`..data`) beside it, so a watch on the file itself would see one change and then nothing. Events
//! only say that something happened there; whether the files have changed is decided by their contents. A check every
//! 30 s covers file systems without events. SIGHUP reloads, too.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::Reload;
use crate::shutdown::{Phase, Shutdown};

/// Files are read when nothing has happened in their directories for this long...
const QUIET: Duration = Duration::from_millis(250);
/// ...or when something has been happening for this long.
const MAX_QUIET_WAIT: Duration = Duration::from_secs(2);
/// The interval of the check without events.
const POLL_INTERVAL: Duration = Duration::from_secs(30);
/// The most symbolic links on the way to a file; the kernel follows 40 (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Reloads the config of a running balancer.
pub(crate) struct ConfigWatcher {
    /// SIGHUP.
    hangup: Signal,
    /// `None` where the kernel gives no watch: then only the interval counts.
    watcher: Option<RecommendedWatcher>,
    /// One pending event stands for all.
    events: Receiver<()>,
    /// The directories that are watched.
    directories: BTreeSet<PathBuf>,
}

impl ConfigWatcher {
    /// Handles SIGHUP from now on, and is ready to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The signal cannot be handled.
    pub(crate) fn new() -> io::Result<Self> {
        let (tell, events) = channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading the files ourselves gives Access events, too. A fault of the watcher is a reason to look.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                // A full channel says already that something happened.
                let _ = tell.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "files cannot be watched, they are checked every 30 s");
        });
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { hangup, watcher: watcher.ok(), events, directories: BTreeSet::new() })
    }

    /// Reloads whenever the files have changed or SIGHUP asks for it, until draining begins.
    pub(crate) async fn run(mut self, reload: Arc<Reload>, shutdown: Shutdown) {
        let mut look = interval(POLL_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.wait_for(Phase::Draining) => return,
                () = shutdown.wait_until_superseded() => return,
                _ = look.tick() => {
                    self.unwatch_all();
                    self.reload_if_changed(&reload).await;
                }
                Some(()) = self.events.recv() => {
                    self.wait_until_quiet().await;
                    self.reload_if_changed(&reload).await;
                }
                Some(()) = self.hangup.recv() => {
                    tracing::info!("reload on SIGHUP");
                    reload.reload_on_signal().await;
                    self.watch(&reload);
                }
            }
        }
    }

    /// Waits until events stop.
    async fn wait_until_quiet(&mut self) {
        let longest = Instant::now() + MAX_QUIET_WAIT;
        loop {
            let until = longest.min(Instant::now() + QUIET);
            if !matches!(timeout_at(until, self.events.recv()).await, Ok(Some(()))) {
                return;
            }
        }
    }

    /// Watches before it reads, so that no change is missed; again when the config names other files.
    async fn reload_if_changed(&mut self, reload: &Arc<Reload>) {
        self.watch(reload);
        reload.reload_if_changed().await;
        if self.watch(reload) {
            reload.reload_if_changed().await;
        }
    }

    /// Ends all watches, to begin them anew: a directory that was deleted and created again is another one.
    fn unwatch_all(&mut self) {
        for directory in std::mem::take(&mut self.directories) {
            if let Some(watcher) = &mut self.watcher {
                // It may be gone, and the watch with it.
                let _ = watcher.unwatch(&directory);
            }
        }
    }

    /// Watches the directories of the files; true when there are others than before.
    fn watch(&mut self, reload: &Reload) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let mut wanted = BTreeSet::new();
        for file in reload.files() {
            watched_directories(&file, &mut wanted, &mut { MAX_LINKS });
        }
        for gone in self.directories.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        let mut is_new = false;
        for directory in wanted.difference(&self.directories) {
            is_new = true;
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                // It may come back; the interval finds it then.
                tracing::debug!(%error, directory = %directory.display(), "directory is not watched");
            }
        }
        self.directories = wanted;
        is_new
    }
}

/// The directories in which something happens when `file` becomes another: its own, and that of each symbolic link
/// on the way to it.
fn watched_directories(file: &Path, found: &mut BTreeSet<PathBuf>, links: &mut usize) {
    let Ok(file) = std::path::absolute(file) else { return };
    for path in file.ancestors() {
        let (Ok(target), Some(parent)) = (std::fs::read_link(path), path.parent()) else { continue };
        found.insert(parent.to_owned());
        if *links == 0 {
            return;
        }
        *links -= 1;
        let rest = file.strip_prefix(path).unwrap_or(Path::new(""));
        let target = parent.join(target);
        // Joining an empty rest would add a slash.
        let target = if rest.as_os_str().is_empty() { target } else { target.join(rest) };
        watched_directories(&target, found, links);
    }
    found.extend(file.parent().map(Path::to_owned));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(file: &Path) -> Vec<PathBuf> {
        let mut found = BTreeSet::new();
        watched_directories(file, &mut found, &mut { MAX_LINKS });
        found.into_iter().collect()
    }

    #[test]
    fn a_plain_file_is_watched_in_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        assert_eq!(
            found(&root.join("balancer.yaml")),
            std::slice::from_ref(&root),
            "whether it is there or not"
        );
    }

    #[test]
    fn every_link_on_the_way_is_watched_where_it_stands() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        // As Kubernetes mounts a ConfigMap.
        std::fs::create_dir(root.join("..2026")).unwrap();
        symlink("..2026", root.join("..data")).unwrap();
        symlink("..data/balancer.yaml", root.join("balancer.yaml")).unwrap();
        let expected = [root.clone(), root.join("..2026"), root.join("..data")];
        assert_eq!(found(&root.join("balancer.yaml")), expected);
    }

    #[test]
    fn a_circle_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(found(&root.join("a")), std::slice::from_ref(&root));
        symlink("deep", root.join("deep")).unwrap();
        assert!(found(&root.join("deep/balancer.yaml")).contains(&root));
    }
}
