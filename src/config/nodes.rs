//! The nodes of a pool: the section `nodes`.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::reader::{Section, Value};
use crate::pool::{Node, NodeAddress, NodeId};

pub(super) fn nodes(pool: &Section) -> Vec<Node> {
    const EXAMPLE: &str = "- { id: ws1, address: \"127.0.0.1:3001\" }";
    let Some(value) = pool.required("nodes", &format!("a list of them, such as `{EXAMPLE}`")) else {
        return Vec::new();
    };
    let items = value.some_items(EXAMPLE);
    if items.len() == 1 {
        value.warn("with one node, all its clients are cut off whenever it is; add a second");
    }
    let mut seen = Seen::default();
    items.iter().filter_map(|item| node(item, &mut seen)).collect()
}

/// On which line each of the nodes before is.
#[derive(Default)]
struct Seen {
    ids: HashMap<NodeId, usize>,
    addresses: HashMap<NodeAddress, usize>,
}

fn node(item: &Value, seen: &mut Seen) -> Option<Node> {
    let section = item.section(&["id", "address", "weight", "max_connections", "release"]);
    let id = section.required("id", "a name of its own, such as `id: ws1`").and_then(|value| {
        let id: NodeId = value.typed("a name, such as ws1")?;
        if let Some(first) = seen.ids.insert(id.clone(), value.at().line) {
            value.fault(format_args!(
                "the node on line {first} is {id}, too; pins name nodes, so each has its own id"
            ));
        }
        Some(id)
    });
    let address =
        section.required("address", "`address: \"127.0.0.1:3001\"`, for instance").and_then(|value| {
            let example = "an address, such as \"127.0.0.1:3001\", \"ws1.internal:3001\" or \"unix:/path\"";
            let address: NodeAddress = value.typed(example)?;
            if let Some(first) = seen.addresses.insert(address.clone(), value.at().line) {
                value.warn(format_args!(
                    "the node on line {first} is at {address}, too, so one server counts as two; write the address of \
                     another, or one node with more `weight`"
                ));
            }
            Some(address)
        });
    let weight = section.value("weight").map_or(1, |value| weight(&value));
    let max_connections = section.some("max_connections").and_then(|value| value.number(1..=u32::MAX));
    let release = section.some("release").and_then(|value| {
        value.parsed("a release of at most 64 visible characters, such as v7", |text| {
            let visible = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic());
            visible.then(|| text.to_owned())
        })
    });
    Some(Node { id: id?, address: address?, weight, max_connections, release })
}

fn weight(value: &Value) -> u16 {
    const RANGE: RangeInclusive<u16> = 1..=1000;
    if value.as_text() == Some("0") {
        value.fault(
            "`0` where there must be a number from 1 to 1000; a node that is to take nobody new is drained: \
             `mainstay drain POOL/NODE`",
        );
        return 1;
    }
    value.number(RANGE).unwrap_or(1)
}
