//! The sockets on which the balancer listens, and the tasks that accept on them.
//!
//! A reload binds what is new first; only when all of that has worked is anything opened or closed. A door whose
//! address stays is not touched: its queue of connections in the kernel outlives every reload.

use std::io;
use std::mem;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Fault, ListenAddress, Position, same_listeners};
use crate::net::listen::{Listener, Spare};
use crate::proxy::entrance::Entrance;

/// The open doors of the present config.
#[derive(Default)]
pub(super) struct Doors {
    /// As `listeners` in the config, in its order.
    clients: Vec<Door>,
    admin: Option<Door>,
}

/// Sockets that are bound and on which nobody accepts yet.
pub struct Bound {
    /// One for each of `listeners`; `None` where the open door stays.
    pub clients: Vec<Option<Listener>>,
    /// What connections go through, one for each of `listeners`, also of the doors that stay.
    pub entrances: Vec<Entrance>,
    /// `None` where the open door stays, or there is none to be.
    pub admin: Option<Listener>,
}

/// One socket and its task.
struct Door {
    /// As bound.
    local: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// What clients go through here; none for the admin API.
    entrance: Option<Arc<Entrance>>,
    /// Keeps the socket, and those who wait in its queue, when nobody accepts for a moment. `None` where there was no
    /// descriptor left for it.
    spare: Option<Spare>,
}

/// Who accepts clients on a listener until the token is cancelled; gives the task.
pub(super) type AcceptClients<'a> = &'a dyn Fn(Listener, Arc<Entrance>, CancellationToken) -> JoinHandle<()>;
/// The same for the admin API.
pub(super) type AcceptAdmin<'a> = &'a dyn Fn(Listener, CancellationToken) -> JoinHandle<()>;

/// Doors that are closing.
pub(super) struct Closing(Vec<Door>);

impl Bound {
    /// Binds everything that `config` names, for a start. `bind` makes one listener, and is told whether it is the
    /// one of the admin API.
    ///
    /// # Errors
    ///
    /// The first address that cannot be bound, or whose TLS cannot be spoken.
    pub fn all(
        config: &Config,
        mut bind: impl FnMut(&ListenAddress, bool) -> io::Result<Listener>,
    ) -> io::Result<Self> {
        let entrances =
            config.listeners.iter().map(|listener| Entrance::new(listener).map_err(io::Error::other));
        let entrances = entrances.collect::<io::Result<_>>()?;
        let clients = config.listeners.iter().map(|listener| bind(&listener.address, false).map(Some));
        Ok(Self {
            clients: clients.collect::<io::Result<_>>()?,
            entrances,
            admin: config.admin.as_ref().map(|admin| bind(&admin.address, true)).transpose()?,
        })
    }
}

impl Doors {
    /// Binds what `new` names and `old`, the present config, does not.
    ///
    /// # Errors
    ///
    /// A fault for each address that cannot be bound, or whose TLS cannot be spoken; nothing stays bound then.
    pub fn bind(&self, old: &Config, new: &Config) -> Result<Bound, Vec<Fault>> {
        let mut faults = Vec::new();
        type Bind = fn(&ListenAddress) -> io::Result<Listener>;
        let mut try_bind = |bind: Bind, address: &ListenAddress, at: Option<&Position>| {
            let fault = |error| fault(old, address, at, &error);
            bind(address).map_err(|error| faults.push(fault(error))).ok()
        };
        let places = same_listeners(&old.listeners, &new.listeners);
        let wanted = new.listeners.iter().zip(places).enumerate();
        let clients = wanted.map(|(index, (listener, place))| match place {
            Some(_) => None,
            None => try_bind(bind, &listener.address, new.places.listeners.get(index)),
        });
        let clients = clients.collect();
        let present = old.admin.as_ref().map(|admin| &admin.address);
        let wanted =
            new.admin.as_ref().map(|admin| &admin.address).filter(|address| present != Some(*address));
        let admin = wanted.and_then(|address| try_bind(bind_admin, address, new.places.admin.as_ref()));
        let mut entrances = Vec::new();
        for (index, listener) in new.listeners.iter().enumerate() {
            match (Entrance::new(listener), new.places.listeners.get(index)) {
                (Ok(entrance), _) => entrances.push(entrance),
                (Err(error), Some(at)) => faults.push(Fault::new(*at, format!("tls: {error}"))),
                (Err(error), None) => faults.push(Fault::of_file(format!("tls: {error}"))),
            }
        }
        if faults.is_empty() { Ok(Bound { clients, entrances, admin }) } else { Err(faults) }
    }

    /// Opens what was bound for `new`, and then begins to close what only `old` names.
    pub fn open(
        &mut self,
        bound: Bound,
        (old, new): (&Config, &Config),
        (clients, admin): (AcceptClients, AcceptAdmin),
    ) -> Closing {
        let mut before: Vec<Option<Door>> = self.clients.drain(..).map(Some).collect();
        let places = same_listeners(&old.listeners, &new.listeners);
        for ((listener, entrance), place) in bound.clients.into_iter().zip(bound.entrances).zip(places) {
            let kept = place.and_then(|at| before.get_mut(at)?.take());
            if let Some(kept) = kept.as_ref().and_then(|door| door.entrance.as_ref()) {
                kept.change(&entrance);
            }
            let opened = || Some(Door::for_clients(listener?, entrance, clients));
            self.clients.extend(kept.or_else(opened));
        }
        let mut closing: Vec<Door> = before.into_iter().flatten().collect();
        if bound.admin.is_some() || new.admin.is_none() {
            closing.extend(self.admin.take());
            self.admin = bound.admin.map(|listener| Door::for_admin(listener, admin));
        }
        closing.iter().for_each(|door| door.stop.cancel());
        Closing(closing)
    }

    /// Where clients come in, as bound, in the order of the config.
    pub fn clients(&self) -> Vec<String> {
        self.clients.iter().map(|door| door.local.clone()).collect()
    }

    /// The sockets, for another process; `None` where one cannot be handed over.
    pub fn spares(&self) -> Option<Vec<&Spare>> {
        self.clients.iter().chain(&self.admin).map(|door| door.spare.as_ref()).collect()
    }

    /// Accepts no clients for now: they wait in the kernel's queue. Gives the tasks that are ending.
    pub fn rest(&mut self) -> Vec<JoinHandle<()>> {
        let (stops, tasks): (Vec<_>, Vec<_>) = self
            .clients
            .iter_mut()
            .map(|door| (door.stop.clone(), mem::replace(&mut door.task, idle())))
            .unzip();
        stops.iter().for_each(CancellationToken::cancel);
        tasks
    }

    /// Accepts clients again.
    pub fn accept_again(&mut self, accept: AcceptClients) {
        for door in &mut self.clients {
            let (Some(spare), Some(entrance)) = (&door.spare, &door.entrance) else { continue };
            match spare.listener() {
                Ok(listener) => {
                    door.stop = CancellationToken::new();
                    door.task = accept(listener, Arc::clone(entrance), door.stop.clone());
                }
                Err(error) => tracing::error!(address = %door.local, %error, "accepting no more"),
            }
        }
    }

    /// Nobody is going to go on with the sockets: each closes with its task.
    pub fn end(&mut self) {
        self.clients.iter_mut().chain(&mut self.admin).for_each(|door| door.spare = None);
    }

    /// Another process goes on with the sockets: their files stay.
    pub fn leave(&self) {
        self.clients.iter().chain(&self.admin).filter_map(|door| door.spare.as_ref()).for_each(Spare::leave);
    }

    /// Where the admin API is, as bound.
    pub fn admin(&self) -> Option<String> {
        self.admin.as_ref().map(|door| door.local.clone())
    }
}

impl Door {
    fn for_clients(listener: Listener, entrance: Entrance, accept: AcceptClients) -> Self {
        let (local, stop, entrance) = (listener.local(), CancellationToken::new(), Arc::new(entrance));
        let spare = spare(&listener);
        let task = accept(listener, Arc::clone(&entrance), stop.clone());
        Self { local, stop, task, entrance: Some(entrance), spare }
    }

    fn for_admin(listener: Listener, accept: AcceptAdmin) -> Self {
        let (local, stop) = (listener.local(), CancellationToken::new());
        let spare = spare(&listener);
        let task = accept(listener, stop.clone());
        Self { local, stop, task, entrance: None, spare }
    }
}

fn spare(listener: &Listener) -> Option<Spare> {
    let spare = listener.spare();
    spare.inspect_err(|error| tracing::warn!(%error, "a listener cannot be handed over")).ok()
}

/// The task of a door where nobody accepts.
fn idle() -> JoinHandle<()> {
    // An owner is not needed: it has ended when it is asked for.
    tokio_util::task::TaskTracker::new().spawn(async {})
}

impl Closing {
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

/// A listener on `address`.
///
/// # Errors
///
/// As in bind(2), with the address.
pub fn bind(address: &ListenAddress) -> io::Result<Listener> {
    let bound = match address {
        ListenAddress::Tcp(address) => Listener::bind_tcp(*address),
        ListenAddress::Unix(path) => Listener::bind_unix(path),
    };
    said(address, bound)
}

/// The same for the admin API: the file of a Unix socket is its owner's alone, who can connect to it needs no token.
///
/// # Errors
///
/// As in bind(2), with the address.
pub fn bind_admin(address: &ListenAddress) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(_) => bind(address),
        ListenAddress::Unix(path) => said(address, Listener::bind_private_unix(path)),
    }
}

fn said(address: &ListenAddress, bound: io::Result<Listener>) -> io::Result<Listener> {
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// What a failed bind means, and what to do where the running config itself is in the way.
fn fault(old: &Config, address: &ListenAddress, at: Option<&Position>, error: &io::Error) -> Fault {
    let own = old.listeners.iter().map(|listener| &listener.address);
    let own = own.chain(old.admin.as_ref().map(|admin| &admin.address));
    let message = match own.into_iter().find(|own| is_in_the_way(own, address)) {
        Some(own) => format!(
            "{error}; the balancer itself listens on {own}: take that out, reload, and then add {address}"
        ),
        None => error.to_string(),
    };
    match at {
        Some(at) => Fault::new(*at, message),
        None => Fault::of_file(message),
    }
}

/// Whether the kernel does not let two sockets have these.
fn is_in_the_way(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            let same_family = one.is_ipv4() == other.is_ipv4();
            let any = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.port() == other.port() && one.port() != 0 && same_family && (any || one.ip() == other.ip())
        }
        _ => one == other,
    }
}
