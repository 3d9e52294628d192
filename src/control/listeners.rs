//! The sockets on which the balancer listens, and the tasks that accept on them.
//!
//! A reload binds what is new first; only when all of that has worked is anything opened or closed. A door whose
//! address stays is not touched: its queue of connections in the kernel outlives every reload.

use std::io;
use std::mem;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listen_spec::{ListenSpec, bind_fault};
use crate::config::{Config, Fault, Position, same_listeners};
use crate::net::listener::{Listener, ListenerHandle};
use crate::proxy::acceptor::Acceptor;

/// The open doors of the present config.
#[derive(Default)]
pub(super) struct ListenerSet {
    /// As `listeners` in the config, in its order.
    clients: Vec<OpenListener>,
    admin: Option<OpenListener>,
}

/// Sockets that are bound and on which nobody accepts yet.
pub struct BoundListeners {
    /// One for each of `listeners`; `None` where the open door stays.
    pub clients: Vec<Option<Listener>>,
    /// What connections go through, one for each of `listeners`, also of the doors that stay.
    pub acceptors: Vec<Acceptor>,
    /// `None` where the open door stays, or there is none to be.
    pub admin: Option<Listener>,
}

/// A socket whose file another config wants otherwise.
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
    /// What clients go through here; none for the admin API.
    acceptor: Option<Arc<Acceptor>>,
    /// Keeps the socket, and those who wait in its queue, when nobody accepts for a moment. `None` where there was no
    /// descriptor left for it.
    spare: Option<ListenerHandle>,
}

/// Who accepts clients on a listener until the token is cancelled; gives the task.
pub(super) type AcceptClients<'a> = &'a dyn Fn(Listener, Arc<Acceptor>, CancellationToken) -> JoinHandle<()>;
/// The same for the admin API.
pub(super) type AcceptAdmin<'a> = &'a dyn Fn(Listener, CancellationToken) -> JoinHandle<()>;

/// Doors that are closing.
pub(super) struct ClosingListeners(Vec<OpenListener>);

impl BoundListeners {
    /// Binds everything that `config` names, for a start. `bind` makes one listener.
    ///
    /// # Errors
    ///
    /// A fault for each address that cannot be bound, or whose TLS cannot be spoken; nothing stays bound then.
    pub fn all(
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
        let entrances = build_acceptors(config, &mut faults);
        if faults.is_empty() { Ok(Self { clients, acceptors: entrances, admin }) } else { Err(faults) }
    }
}

/// What connections go through, one for each of `listeners` whose TLS can be spoken.
fn build_acceptors(config: &Config, faults: &mut Vec<Fault>) -> Vec<Acceptor> {
    let mut entrances = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        match (Acceptor::new(listener), config.places.listeners.get(index)) {
            (Ok(entrance), _) => entrances.push(entrance),
            (Err(error), Some(at)) => faults.push(Fault::new(*at, format!("tls: {error}"))),
            (Err(error), None) => faults.push(Fault::of_file(format!("tls: {error}"))),
        }
    }
    entrances
}

impl ListenerSet {
    /// Binds what `new` names and `old`, the present config, does not.
    ///
    /// # Errors
    ///
    /// A fault for each address that cannot be bound, or whose TLS cannot be spoken; nothing stays bound then.
    pub fn bind(&self, old: &Config, new: &Config) -> Result<BoundListeners, Vec<Fault>> {
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
        let entrances = build_acceptors(new, &mut faults);
        if faults.is_empty() {
            Ok(BoundListeners { clients, acceptors: entrances, admin })
        } else {
            Err(faults)
        }
    }

    /// Gives the files of the Unix sockets that stay open the mode and the group that `new` says.
    ///
    /// # Errors
    ///
    /// A fault for each that cannot be changed; all are as they were then.
    pub fn apply_permissions(&self, old: &Config, new: &Config) -> Result<(), Vec<Fault>> {
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

    /// Takes [`permit`](Self::permit) back.
    pub fn restore_permissions(&self, old: &Config, new: &Config) {
        for PermissionChange { old: spec, spare, .. } in self.permission_changes(old, new) {
            if let Err(error) = spec.permissions().and_then(|wanted| spare.set_permissions(&wanted)) {
                tracing::warn!(address = %spec.address, %error, "the permissions of a listener are not as they were");
            }
        }
    }

    /// The sockets that stay open and whose files are to be other ones.
    fn permission_changes<'a>(&'a self, old: &'a Config, new: &'a Config) -> Vec<PermissionChange<'a>> {
        let mut changed = Vec::new();
        let mut consider = |old, new, door: &'a OpenListener, at| {
            if let Some(spare) = door.spare.as_ref().filter(|_| old != new) {
                changed.push(PermissionChange { old, new, spare, at });
            }
        };
        let places = same_listeners(&old.listeners, &new.listeners);
        for (index, (listener, place)) in new.listeners.iter().zip(places).enumerate() {
            let Some(place) = place else { continue };
            let (Some(before), Some(door)) = (old.listeners.get(place), self.clients.get(place)) else {
                continue;
            };
            let specs = (ListenSpec::for_clients(before), ListenSpec::for_clients(listener));
            consider(specs.0, specs.1, door, new.places.listeners.get(index));
        }
        if let (Some(old), Some(now), Some(door)) = (&old.admin, &new.admin, &self.admin)
            && old.address == now.address
        {
            consider(ListenSpec::for_admin(old), ListenSpec::for_admin(now), door, new.places.admin.as_ref());
        }
        changed
    }

    /// Opens what was bound for `new`, and then begins to close what only `old` names.
    pub fn open(
        &mut self,
        bound: BoundListeners,
        (old, new): (&Config, &Config),
        (clients, admin): (AcceptClients, AcceptAdmin),
    ) -> ClosingListeners {
        let mut before: Vec<Option<OpenListener>> = self.clients.drain(..).map(Some).collect();
        let places = same_listeners(&old.listeners, &new.listeners);
        for ((listener, entrance), place) in bound.clients.into_iter().zip(bound.acceptors).zip(places) {
            let kept = place.and_then(|at| before.get_mut(at)?.take());
            if let Some(kept) = kept.as_ref().and_then(|door| door.acceptor.as_ref()) {
                kept.replace_with(&entrance);
            }
            let opened = || Some(OpenListener::for_clients(listener?, entrance, clients));
            self.clients.extend(kept.or_else(opened));
        }
        let mut closing: Vec<OpenListener> = before.into_iter().flatten().collect();
        if bound.admin.is_some() || new.admin.is_none() {
            closing.extend(self.admin.take());
            self.admin = bound.admin.map(|listener| OpenListener::for_admin(listener, admin));
        }
        closing.iter().for_each(|door| door.stop.cancel());
        ClosingListeners(closing)
    }

    /// Where clients come in, as bound, in the order of the config.
    pub fn clients(&self) -> Vec<String> {
        self.clients.iter().map(|door| door.local.clone()).collect()
    }

    /// The sockets, for another process; `None` where one cannot be handed over.
    pub fn spares(&self) -> Option<Vec<&ListenerHandle>> {
        self.clients.iter().chain(&self.admin).map(|door| door.spare.as_ref()).collect()
    }

    /// Accepts no clients for now: they wait in the kernel's queue. Gives the tasks that are ending. The admin server
    /// rests by itself when another process takes over, and has answers to finish.
    pub fn pause(&mut self) -> Vec<JoinHandle<()>> {
        let (stops, tasks): (Vec<_>, Vec<_>) = self
            .clients
            .iter_mut()
            .map(|door| (door.stop.clone(), mem::replace(&mut door.task, idle())))
            .unzip();
        stops.iter().for_each(CancellationToken::cancel);
        tasks
    }

    /// Accepts again, also at the admin server.
    pub fn resume(&mut self, (clients, admin): (AcceptClients, AcceptAdmin)) {
        for door in self.clients.iter_mut().chain(&mut self.admin) {
            let Some(spare) = &door.spare else { continue };
            let listener = match spare.listener() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(address = %door.local, %error, "accepting no more");
                    continue;
                }
            };
            door.stop = CancellationToken::new();
            door.task = match &door.acceptor {
                Some(entrance) => clients(listener, Arc::clone(entrance), door.stop.clone()),
                None => admin(listener, door.stop.clone()),
            };
        }
    }

    /// Nobody is going to go on with the sockets: each closes with its task.
    pub fn drop_spares(&mut self) {
        self.clients.iter_mut().chain(&mut self.admin).for_each(|door| door.spare = None);
    }

    /// Another process goes on with the sockets: they are closed here, where everything rests, and their files stay.
    pub fn release(&mut self) {
        let spares = self.clients.iter_mut().chain(&mut self.admin).filter_map(|door| door.spare.take());
        spares.for_each(|spare| spare.keep_file());
    }

    /// Where the admin API is, as bound.
    pub fn admin(&self) -> Option<String> {
        self.admin.as_ref().map(|door| door.local.clone())
    }
}

impl OpenListener {
    fn for_clients(listener: Listener, entrance: Acceptor, accept: AcceptClients) -> Self {
        let (local, stop, entrance) =
            (listener.local_address(), CancellationToken::new(), Arc::new(entrance));
        let spare = spare(&listener);
        let task = accept(listener, Arc::clone(&entrance), stop.clone());
        Self { local, stop, task, acceptor: Some(entrance), spare }
    }

    fn for_admin(listener: Listener, accept: AcceptAdmin) -> Self {
        let (local, stop) = (listener.local_address(), CancellationToken::new());
        let spare = spare(&listener);
        let task = accept(listener, stop.clone());
        Self { local, stop, task, acceptor: None, spare }
    }
}

fn spare(listener: &Listener) -> Option<ListenerHandle> {
    let spare = listener.duplicate();
    spare.inspect_err(|error| tracing::warn!(%error, "a listener cannot be handed over")).ok()
}

/// The task of a door where nobody accepts.
fn idle() -> JoinHandle<()> {
    // An owner is not needed: it has ended when it is asked for.
    tokio_util::task::TaskTracker::new().spawn(async {})
}

impl ClosingListeners {
    /// Waits until the sockets are closed, so that their addresses are free.
    pub async fn wait(self) {
        for mut door in self.0 {
            door.spare = None;
            tracing::info!(address = %door.local, "listening no more");
            // A panic of the task has been said, and has closed the socket.
            let _ = door.task.await;
        }
    }
}
