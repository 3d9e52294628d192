//! What differs between two configs: one change, and how changes are gathered.
//!
//! A sentence may show what the file says, never a secret: of keys it only says that they are others.

use std::fmt;
use std::sync::Arc;

use crate::pool::NodeId;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// What is different about it.
    pub what: What,
}

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A listener, by its address as written.
    Listener(String),
    /// A pool, by name.
    Pool(Arc<str>),
    /// A node of a pool.
    Node(Arc<str>, NodeId),
    /// A route, by its host and path as written.
    Route(String),
    /// A section at the top of the config, by its key.
    Section(&'static str),
}

/// What is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// New; with what it is.
    Added(String),
    /// Gone; with what that means, or nothing.
    Removed(String),
    /// A node that listens elsewhere: the old place and the new one.
    Moved(String, String),
    /// This key has another value: the key, the new value, the old one.
    Set(String, String, String),
    /// This part of the subject is new.
    PartAdded(String),
    /// This part of the subject is gone.
    PartRemoved(String),
    /// This part is another, and is not shown.
    Replaced(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Listener(address) => write!(f, "listener {address}")?,
            Subject::Pool(pool) => write!(f, "pool {pool}")?,
            Subject::Node(pool, node) => write!(f, "pool {pool}: node {node}")?,
            Subject::Route(route) => write!(f, "route {route}")?,
            Subject::Section(key) => f.write_str(key)?,
        }
        match &self.what {
            What::Added(what) => write!(f, " added ({what})"),
            What::Removed(more) if more.is_empty() => f.write_str(" removed"),
            What::Removed(more) => write!(f, " removed ({more})"),
            What::Moved(from, to) => write!(f, " moved to {to}, was at {from}"),
            What::Set(key, new, old) => write!(f, ": {key} is {new} now, was {old}"),
            What::PartAdded(what) => write!(f, ": {what} added"),
            What::PartRemoved(what) => write!(f, ": {what} removed"),
            What::Replaced(what) => write!(f, ": {what} replaced"),
        }
    }
}

/// Gathers the changes on the way through two configs.
pub(super) struct Comparison {
    /// What the next change is about. The key at the top is one itself until something in it is.
    subject: Option<Subject>,
    /// The keys below the subject, `timeouts.idle`.
    path: String,
    changes: Vec<Change>,
}

impl Comparison {
    /// The changes that `compare` says of the two.
    pub(super) fn of<T>(old: &T, new: &T, compare: impl FnOnce(&T, &T, &mut Self)) -> Vec<Change> {
        let mut comparison = Self { subject: None, path: String::new(), changes: Vec::new() };
        compare(old, new, &mut comparison);
        comparison.changes
    }

    /// What `compare` says is about a key of this.
    pub(super) fn below(&mut self, key: &'static str, compare: impl FnOnce(&mut Self)) {
        if self.subject.is_none() {
            return self.about(Subject::Section(key), compare);
        }
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        compare(self);
        self.path.truncate(length);
    }

    /// What `compare` says is about this.
    pub(super) fn about(&mut self, subject: Subject, compare: impl FnOnce(&mut Self)) {
        let before = (self.subject.replace(subject), std::mem::take(&mut self.path));
        compare(self);
        (self.subject, self.path) = before;
    }

    pub(super) fn push(&mut self, what: What) {
        self.changes.extend(self.subject.clone().map(|subject| Change { subject, what }));
    }

    /// The key has another value. A list at the top is all that there is to its section.
    pub(super) fn set(&mut self, new: String, old: String) {
        let key = if self.path.is_empty() { "the list" } else { &self.path };
        self.push(What::Set(key.to_owned(), new, old));
    }

    /// Of `what` there is another order.
    pub(super) fn order<T: ToString>(&mut self, what: &str, old: &[T], new: &[T]) {
        let (old, new) = (listed(old), listed(new));
        if old != new {
            self.push(What::Set(what.to_owned(), new, old));
        }
    }

    /// For what is not shown: that it is there now, is there no longer, or is another.
    pub(super) fn part<T: PartialEq>(&mut self, what: &str, old: Option<&T>, new: Option<&T>) {
        match (old, new) {
            (None, Some(_)) => self.push(What::PartAdded(what.into())),
            (Some(_), None) => self.push(What::PartRemoved(what.into())),
            (old, new) if old != new => self.push(What::Replaced(what.into())),
            _ => {}
        }
    }
}

pub(super) fn listed<T: ToString>(list: &[T]) -> String {
    let items: Vec<String> = list.iter().map(T::to_string).collect();
    format!("[{}]", items.join(", "))
}
