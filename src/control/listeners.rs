//! The sockets on which the balancer listens, and the tasks that accept on them.
//!
//! A reload binds the new sockets first; nothing is opened or closed before that has succeeded. A listener whose address
//! stays is not touched: its queue of connections in the kernel survives every reload.

use std::io;
use std::mem;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listen_spec::{ListenSpec, bind_fault};
use crate::config::{Config, Fault, Position, same_listeners};
use crate::net::listener::{Listener, ListenerHandle};
use crate::proxy::acceptor::Acceptor;

/// The open listeners of the running config.
#[derive(Default)]
pub(super) struct ListenerSet {
    /// As `listeners` in the config, in its order.
    clients: Vec<OpenListener>,
    admin: Option<OpenListener>,
}

/// Sockets that are bound and do not accept yet.
pub(crate) struct BoundListeners {
    /// One for each of `listeners`; `None` where the open listener stays.
    pub clients: Vec<Option<Listener>>,
    /// One for each of `listeners`, also for those that stay.
    pub acceptors: Vec<Acceptor>,
    /// `None` where the open listener stays, or the config has none.
    pub admin: Option<Listener>,
}

/// A Unix socket whose file gets another mode or group.
struct PermissionChange<'a> {
    old: ListenSpec<'a>,
    new: ListenSpec<'a>,
    spare: &'a ListenerHandle,
    at: Option<&'a Position>,
}

/// One socket and its task.
struct OpenListener {
    /// As bound.
    local: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// `None` for the admin API.
    acceptor: Option<Arc<Acceptor>>,
    /// Keeps the socket and its queue open while no task accepts. `None` where no descriptor was left for it.
    spare: Option<ListenerHandle>,
}

/// Starts the tasks that accept on a listener until the token is cancelled.
pub(super) struct AcceptTasks<'a> {
    /// For clients.
    pub clients: &'a dyn Fn(Listener, Arc<Acceptor>, CancellationToken) -> JoinHandle<()>,
    /// For the admin API.
    pub admin: &'a dyn Fn(Listener, CancellationToken) -> JoinHandle<()>,
}

/// Listeners that are closing.
pub(super) struct ClosingListeners(Vec<OpenListener>);

impl BoundListeners {
    /// Binds everything that `config` names, for a start. `bind` makes one listener.
    ///
    /// # Errors
    ///
    /// A fault for each address that cannot be bound or whose TLS settings are not usable; nothing stays bound then.
    pub(crate) fn all(
        config: &Config,
        mut bind: impl FnMut(ListenSpec) -> io::Result<Listener>,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut try_bind = |spec: ListenSpec, at: Option<&Position>| {
            bind(spec).map_err(|error| faults.push(bind_fault(None, spec.address, at, &error))).ok()
        };
        let places = |index: usize| config.places.listeners.get(index);
        let listeners = config.listeners.iter().enumerate();
        let clients =
            listeners.map(|(index, listener)| try_bind(ListenSpec::for_clients(listener), places(index)));
        let clients = clients.collect();
        let admin = config.admin.as_ref().map(ListenSpec::for_admin);
        let admin = admin.and_then(|spec| try_bind(spec, config.places.admin.as_ref()));
        let acceptors = build_acceptors(config, &mut faults);
        if faults.is_empty() { Ok(Self { clients, acceptors, admin }) } else { Err(faults) }
    }
}

/// One acceptor for each of `listeners` whose TLS settings are usable.
fn build_acceptors(config: &Config, faults: &mut Vec<Fault>) -> Vec<Acceptor> {
    let mut acceptors = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        match (Acceptor::new(listener), config.places.listeners.get(index)) {
            (Ok(acceptor), _) => acceptors.push(acceptor),
            (Err(error), Some(at)) => faults.push(Fault::new(*at, format!("tls: {error}"))),
            (Err(error), None) => faults.push(Fault::of_file(format!("tls: {error}"))),
        }
    }
    acceptors
}

impl ListenerSet {
    /// Binds what `new` names and `old`, the present config, does not.
    ///
    /// # Errors
    ///
    /// A fault for each address that cannot be bound or whose TLS settings are not usable; nothing stays bound then.
    pub(super) fn bind(&self, old: &Config, new: &Config) -> Result<BoundListeners, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut try_bind = |spec: ListenSpec, at: Option<&Position>| {
            spec.bind().map_err(|error| faults.push(bind_fault(Some(old), spec.address, at, &error))).ok()
        };
        let places = same_listeners(&old.listeners, &new.listeners);
        let wanted = new.listeners.iter().zip(places).enumerate();
        let clients = wanted.map(|(index, (listener, place))| match place {
            Some(_) => None,
            None => try_bind(ListenSpec::for_clients(listener), new.places.listeners.get(index)),
        });
        let clients = clients.collect();
        let present = old.admin.as_ref().map(|admin| &admin.address);
        let wanted = new.admin.as_ref().filter(|admin| present != Some(&admin.address));
        let admin =
            wanted.and_then(|admin| try_bind(ListenSpec::for_admin(admin), new.places.admin.as_ref()));
        let acceptors = build_acceptors(new, &mut faults);
        if faults.is_empty() { Ok(BoundListeners { clients, acceptors, admin }) } else { Err(faults) }
    }

    /// Gives the files of the Unix sockets that stay open the mode and the group of `new`.
    ///
    /// # Errors
    ///
    /// A fault for each file that cannot be changed; all are as before then.
    pub(super) fn apply_permissions(&self, old: &Config, new: &Config) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        for PermissionChange { new: spec, spare, at, .. } in self.permission_changes(old, new) {
            let changed = spec.permissions().and_then(|wanted| spare.set_permissions(&wanted));
            faults
                .extend(changed.err().map(|error| bind_fault(None, spec.address, at, &spec.explain(&error))));
        }
        if faults.is_empty() {
            return Ok(());
        }
        self.restore_permissions(old, new);
        Err(faults)
    }

    /// Undoes [`apply_permissions`](Self::apply_permissions).
    pub(super) fn restore_permissions(&self, old: &Config, new: &Config) {
        for PermissionChange { old: spec, spare, .. } in self.permission_changes(old, new) {
            if let Err(error) = spec.permissions().and_then(|wanted| spare.set_permissions(&wanted)) {
                tracing::warn!(address = %spec.address, %error, "the permissions of a listener cannot be restored");
            }
        }
    }

    /// The sockets that stay open and whose files get other permissions.
    fn permission_changes<'a>(&'a self, old: &'a Config, new: &'a Config) -> Vec<PermissionChange<'a>> {
        let mut changed = Vec::new();
        let mut consider = |old, new, open: &'a OpenListener, at| {
            if let Some(spare) = open.spare.as_ref().filter(|_| old != new) {
                changed.push(PermissionChange { old, new, spare, at });
            }
        };
        let places = same_listeners(&old.listeners, &new.listeners);
        for (index, (listener, place)) in new.listeners.iter().zip(places).enumerate() {
            let Some(place) = place else { continue };
            let (Some(before), Some(open)) = (old.listeners.get(place), self.clients.get(place)) else {
                continue;
            };
            let specs = (ListenSpec::for_clients(before), ListenSpec::for_clients(listener));
            consider(specs.0, specs.1, open, new.places.listeners.get(index));
        }
        if let (Some(old), Some(now), Some(open)) = (&old.admin, &new.admin, &self.admin)
            && old.address == now.address
        {
            consider(ListenSpec::for_admin(old), ListenSpec::for_admin(now), open, new.places.admin.as_ref());
        }
        changed
    }

    /// Opens what was bound for `new`, and begins to close what only `old` has.
    pub(super) fn open(
        &mut self,
        bound: BoundListeners,
        old: &Config,
        new: &Config,
        tasks: &AcceptTasks,
    ) -> ClosingListeners {
        let mut before: Vec<Option<OpenListener>> = self.clients.drain(..).map(Some).collect();
        let places = same_listeners(&old.listeners, &new.listeners);
        for ((listener, acceptor), place) in bound.clients.into_iter().zip(bound.acceptors).zip(places) {
            let kept = place.and_then(|at| before.get_mut(at)?.take());
            if let Some(kept) = kept.as_ref().and_then(|open| open.acceptor.as_ref()) {
                kept.replace_with(&acceptor);
            }
            let opened = || Some(OpenListener::for_clients(listener?, acceptor, tasks));
            self.clients.extend(kept.or_else(opened));
        }
        let mut closing: Vec<OpenListener> = before.into_iter().flatten().collect();
        if bound.admin.is_some() || new.admin.is_none() {
            closing.extend(self.admin.take());
            self.admin = bound.admin.map(|listener| OpenListener::for_admin(listener, tasks));
        }
        closing.iter().for_each(|open| open.stop.cancel());
        ClosingListeners(closing)
    }

    /// The addresses for clients, as bound, in the order of the config.
    pub(super) fn clients(&self) -> Vec<String> {
        self.clients.iter().map(|open| open.local.clone()).collect()
    }

    /// The sockets, for another process; `None` where one cannot be handed over.
    pub(super) fn spares(&self) -> Option<Vec<&ListenerHandle>> {
        self.clients.iter().chain(&self.admin).map(|open| open.spare.as_ref()).collect()
    }

    /// Stops accepting clients for now: they wait in the kernel's queue. Gives the tasks that are ending. The admin server
    /// stops by itself when another process takes over: it has responses to finish.
    pub(super) fn pause(&mut self) -> Vec<JoinHandle<()>> {
        let (stops, tasks): (Vec<_>, Vec<_>) = self
            .clients
            .iter_mut()
            .map(|open| (open.stop.clone(), mem::replace(&mut open.task, idle())))
            .unzip();
        stops.iter().for_each(CancellationToken::cancel);
        tasks
    }

    /// Accepts again, also at the admin server.
    pub(super) fn resume(&mut self, tasks: &AcceptTasks) {
        for open in self.clients.iter_mut().chain(&mut self.admin) {
            let Some(spare) = &open.spare else { continue };
            let listener = match spare.listener() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(address = %open.local, %error, "accept stopped: the listener cannot be reopened");
                    continue;
                }
            };
            open.stop = CancellationToken::new();
            open.task = match &open.acceptor {
                Some(acceptor) => (tasks.clients)(listener, Arc::clone(acceptor), open.stop.clone()),
                None => (tasks.admin)(listener, open.stop.clone()),
            };
        }
    }

    /// No other process takes the sockets over: each closes with its task.
    pub(super) fn drop_spares(&mut self) {
        self.clients.iter_mut().chain(&mut self.admin).for_each(|open| open.spare = None);
    }

    /// Another process has the sockets now: they are closed here, and their files stay.
    pub(super) fn release(&mut self) {
        let spares = self.clients.iter_mut().chain(&mut self.admin).filter_map(|open| open.spare.take());
        spares.for_each(|spare| spare.keep_file());
    }

    /// The address of the admin API, as bound.
    pub(super) fn admin(&self) -> Option<String> {
        self.admin.as_ref().map(|open| open.local.clone())
    }
}

impl OpenListener {
    fn for_clients(listener: Listener, acceptor: Acceptor, tasks: &AcceptTasks) -> Self {
        let (local, stop, acceptor) =
            (listener.local_address(), CancellationToken::new(), Arc::new(acceptor));
        let spare = spare(&listener);
        let task = (tasks.clients)(listener, Arc::clone(&acceptor), stop.clone());
        Self { local, stop, task, acceptor: Some(acceptor), spare }
    }

    fn for_admin(listener: Listener, tasks: &AcceptTasks) -> Self {
        let (local, stop) = (listener.local_address(), CancellationToken::new());
        let spare = spare(&listener);
        let task = (tasks.admin)(listener, stop.clone());
        Self { local, stop, task, acceptor: None, spare }
    }
}

fn spare(listener: &Listener) -> Option<ListenerHandle> {
    let spare = listener.duplicate();
    spare
        .inspect_err(|error| tracing::warn!(%error, "no descriptor is left to hand a listener over with"))
        .ok()
}

/// The task of a listener that does not accept.
fn idle() -> JoinHandle<()> {
    // It needs no owner: it ends at once.
    tokio_util::task::TaskTracker::new().spawn(async {})
}

impl ClosingListeners {
    /// Waits until the sockets are closed, so that their addresses are free.
    pub(super) async fn wait(self) {
        for mut open in self.0 {
            open.spare = None;
            tracing::info!(address = %open.local, "listener closed");
            // A panic of the task has been logged, and has closed the socket.
            let _ = open.task.await;
        }
    }
}
