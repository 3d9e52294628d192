//! The connections of this node's users, and what of them Redis does not know yet.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::user_connection::UserConnection;
use crate::auth::User;

/// The connections of this node, and what of them Redis does not know yet.
#[derive(Default)]
pub(super) struct LocalPresence {
    state: Mutex<LocalState>,
    /// Something changed.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct LocalState {
    /// User → socket → connection.
    users: HashMap<User, HashMap<String, UserConnection>>,
    /// What Redis does not know yet: socket → its user, and the connection unless it has gone.
    changes: HashMap<String, (User, Option<UserConnection>)>,
    /// What is in Redis may be anything: everything is to be written.
    all: bool,
}

/// What Redis is to be told.
#[derive(Debug)]
pub(super) enum PresenceChange {
    /// It is there, or has another status.
    Arrived(User, UserConnection),
    Left {
        user: User,
        socket: String,
        was_last: bool,
    },
}

impl LocalPresence {
    pub(super) fn add(&self, user: &User, connection: UserConnection) {
        let mut state = self.state.lock();
        let socket = connection.socket_id.clone();
        state.users.entry(user.clone()).or_default().insert(socket.clone(), connection.clone());
        state.changes.insert(socket, (user.clone(), Some(connection)));
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn set_status(&self, user: &User, socket: &str, status: &str) {
        let mut state = self.state.lock();
        let LocalState { users, changes, .. } = &mut *state;
        let Some(connection) = users.get_mut(user).and_then(|all| all.get_mut(socket)) else { return };
        connection.status = status.into();
        changes.insert(socket.into(), (user.clone(), Some(connection.clone())));
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, user: &User, socket: &str) {
        let mut state = self.state.lock();
        state.leave(user, socket);
        drop(state);
        self.changed.notify_one();
    }

    /// What is to be written now; everything when that is due.
    pub(super) fn take_changes(&self) -> Vec<PresenceChange> {
        let mut state = self.state.lock();
        let LocalState { users, changes, all } = &mut *state;
        if std::mem::take(all) {
            for (user, connection) in
                users.iter().flat_map(|(user, all)| all.values().map(move |c| (user, c)))
            {
                changes.insert(connection.socket_id.clone(), (user.clone(), Some(connection.clone())));
            }
        }
        let told = changes.drain().map(|(socket, (user, connection))| match connection {
            Some(connection) => PresenceChange::Arrived(user, connection),
            None => PresenceChange::Left { was_last: !users.contains_key(&user), user, socket },
        });
        told.collect()
    }

    /// Redis may know any part of what was taken: what left is told again, and with it everything that is here.
    pub(super) fn restore_changes(&self, unwritten: Vec<PresenceChange>) {
        let mut state = self.state.lock();
        for change in unwritten {
            if let PresenceChange::Left { user, socket, .. } = change {
                state.changes.entry(socket).or_insert((user, None));
            }
        }
        state.all = true;
    }

    pub(super) fn rewrite_all(&self) {
        self.state.lock().all = true;
    }

    /// Everybody leaves.
    pub(super) fn remove_all(&self) {
        let mut state = self.state.lock();
        let users: Vec<_> = state.users.iter().map(|(user, all)| (user.clone(), all.clone())).collect();
        for (user, sockets) in users {
            sockets.keys().for_each(|socket| state.leave(&user, socket));
        }
    }
}

impl LocalState {
    fn leave(&mut self, user: &User, socket: &str) {
        let Some(sockets) = self.users.get_mut(user) else { return };
        if sockets.remove(socket).is_some() {
            if sockets.is_empty() {
                self.users.remove(user);
            }
            self.changes.insert(socket.into(), (user.clone(), None));
        }
    }
}
