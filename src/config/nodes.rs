//! The nodes of a pool: the section `nodes`.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use super::change::{Comparison, Subject, What};
use super::entry::{Form, Keys, section};
use super::forms::{number, parsed, sections, typed};
use super::key::Text;
use super::reader::Value;
use crate::pool::{Node, NodeAddress, NodeId};

section! {
    for Node {
        /// What pins and metrics call it, so it stays when the address changes, and nobody moves.
        id: NodeId = typed(Text("1 to 64 of A-Z a-z 0-9 _ . -", "[A-Za-z0-9_.-]{1,64}"), "a name, such as ws1")
            .required("a name of its own, such as `id: ws1`");
        /// Where it is; a name is looked up at each dial.
        address: NodeAddress = typed(Text("host and port, or unix:/path", r".+:[0-9]{1,5}|unix:.+"), ADDRESS)
            .compared_by(|old: &NodeAddress, new, to| to.push(What::Moved(old.to_string(), new.to_string())))
            .required("`address: \"127.0.0.1:3001\"`, for instance");
        /// Its share.
        weight: u16 = weight().or(1);
        /// The most tunnels it takes; over it, the next node is asked.
        max_connections: Option<u32> = number(1..=u32::MAX).or_null();
        /// What it runs, such as v7, unless it says so in X-Mainstay-Release on its health: clients that move go to the
        /// newest.
        release: Option<String> = parsed(
            Text("at most 64 visible characters", "[!-~]{1,64}"),
            "a release of at most 64 visible characters, such as v7",
            |text| is_release(text).then(|| text.to_owned()),
        )
        .or_null();
    }
}

const ADDRESS: &str = "an address, such as \"127.0.0.1:3001\", \"ws1.internal:3001\" or \"unix:/path\"";

/// What a line of the list looks like.
pub(super) const EXAMPLE: &str = "- { id: ws1, address: \"127.0.0.1:3001\" }";

pub(super) fn nodes() -> Form<Vec<Node>> {
    // Who compares two pools compares their nodes first.
    sections(EXAMPLE).checked(|value, _| check_nodes(value)).compared_by(|_, _, _| {})
}

fn check_nodes(value: &Value) {
    let items = value.list();
    if items.len() == 1 {
        value.warn("with one node, all its clients are cut off whenever it is; add a second");
    }
    for (value, id, first) in repeated::<NodeId>(&items, "id") {
        value.fault(format_args!(
            "the node on line {first} is {id}, too; pins name nodes, so each has its own id"
        ));
    }
    for (value, address, first) in repeated::<NodeAddress>(&items, "address") {
        value.warn(format_args!(
            "the node on line {first} is at {address}, too, so one server counts as two; write the address of \
             another, or one node with more `weight`"
        ));
    }
}

/// The keys that say what one in an item before has said, and its line.
fn repeated<'a, T>(items: &[Value<'a>], key: &str) -> Vec<(Value<'a>, T, usize)>
where
    T: FromStr<Err = String> + Eq + std::hash::Hash + Clone,
{
    let mut lines = HashMap::new();
    let mut found = Vec::new();
    for value in items.iter().filter_map(|item| item.entry(key)) {
        let Some(it) = value.silently(|value| value.typed::<T>("")) else { continue };
        if let Some(first) = lines.insert(it.clone(), value.at().line) {
            found.push((value, it, first));
        }
    }
    found
}

fn weight() -> Form<u16> {
    const RANGE: RangeInclusive<u16> = 1..=1000;
    let form = number(RANGE);
    let read = |value: &Value| {
        if value.as_text() != Some("0") {
            return value.number(RANGE);
        }
        value.fault(
            "`0` where there must be a number from 1 to 1000; a node that is to take nobody new is drained: \
             `mainstay drain POOL/NODE`",
        );
        None
    };
    Form { read: Box::new(read), ..form }
}

fn is_release(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic())
}

/// By their ids.
pub(super) fn compare_nodes(pool: &Arc<str>, old: &[Node], new: &[Node], to: &mut Comparison) {
    let subject = |node: &Node| Subject::Node(Arc::clone(pool), node.id.clone());
    for node in old.iter().filter(|node| !has(new, node)) {
        to.about(subject(node), |to| to.push(What::Removed(node.address.to_string())));
    }
    for node in new {
        to.about(subject(node), |to| match old.iter().find(|other| other.id == node.id) {
            Some(old) => Node::compare(old, node, to),
            None => to.push(What::Added(node.address.to_string())),
        });
    }
}

/// The order of the nodes decides ties and the turn of round_robin.
pub(super) fn compare_order(old: &[Node], new: &[Node], to: &mut Comparison) {
    let order = |nodes: &[Node], others: &[Node]| -> Vec<NodeId> {
        nodes.iter().filter(|node| has(others, node)).map(|node| node.id.clone()).collect()
    };
    to.order("the order of nodes", &order(old, new), &order(new, old));
}

fn has(nodes: &[Node], node: &Node) -> bool {
    nodes.iter().any(|other| other.id == node.id)
}
