//! Which master of a Redis Cluster has which slots, and which slot a channel is in.

use redis::Value;

/// Slots of every cluster.
const SLOTS: u16 = 16_384;

/// Where a node of a cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NodeAddress {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Which master has which slots, as one node of the cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SlotMap {
    /// First slot, last slot, master; in the order of the slots.
    ranges: Vec<(u16, u16, NodeAddress)>,
    /// Masters and replicas.
    nodes: Vec<NodeAddress>,
}

impl SlotMap {
    /// Reads the answer to CLUSTER SLOTS. A node without a name of its own is the one at `asked`.
    pub(super) fn read(reply: &Value, asked: &str) -> Option<SlotMap> {
        let mut map = SlotMap::default();
        for range in as_array(reply)? {
            let [Value::Int(first), Value::Int(last), nodes @ ..] = as_array(range)? else { return None };
            let mut nodes: Vec<_> = nodes.iter().filter_map(|node| read_node(node, asked)).collect();
            let master = nodes.first()?.clone();
            map.ranges.push((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, master));
            nodes.retain(|node| !map.nodes.contains(node));
            map.nodes.extend(nodes);
        }
        map.ranges.sort_by_key(|(first, ..)| *first);
        Some(map)
    }

    /// The master of a slot, if it has one.
    pub(super) fn master(&self, slot: u16) -> Option<&NodeAddress> {
        let at = self.ranges.partition_point(|(_, last, _)| *last < slot);
        self.ranges.get(at).filter(|(first, ..)| *first <= slot).map(|(.., node)| node)
    }

    /// Whether a node has any slot.
    pub(super) fn has_slots(&self, node: &NodeAddress) -> bool {
        self.ranges.iter().any(|(.., master)| master == node)
    }

    /// Every node that was named.
    pub(super) fn nodes(&self) -> &[NodeAddress] {
        &self.nodes
    }

    /// A name that begins with `start` and is in one of the master's slots.
    pub(super) fn channel_on(&self, node: &NodeAddress, start: &str) -> Option<String> {
        let tried = (0..u32::from(SLOTS) * 16).map(|number| format!("{start}-{number}"));
        if !self.has_slots(node) {
            return None;
        }
        tried.into_iter().find(|name| self.master(slot_of(name)) == Some(node))
    }
}

fn as_array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

/// A node in the answer: host, port, id, and more since Redis 7. An empty host is the node that was asked.
fn read_node(node: &Value, asked: &str) -> Option<NodeAddress> {
    let [host, Value::Int(port), ..] = as_array(node)? else { return None };
    let host = match host {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::SimpleString(text) => text,
        Value::Nil => "",
        _ => return None,
    };
    let host = if host.is_empty() { asked } else { host };
    Some(NodeAddress { host: host.to_owned(), port: u16::try_from(*port).ok()? })
}

/// The slot of a channel: that of what stands between the first braces, if anything does, and of the whole otherwise.
pub(super) fn slot_of(channel: &str) -> u16 {
    let tag = channel.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(channel).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the cluster specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc: u16, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_in_the_slot_that_the_specification_says() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of("foo"), 12_182);
        assert_eq!(slot_of("a{foo}b"), 12_182);
        assert_eq!(slot_of("{}foo"), slot_of("{}foo"));
        assert_ne!(slot_of("{}foo"), 12_182);
    }

    #[test]
    fn the_answer_to_cluster_slots_is_read_and_each_slot_has_its_master() {
        let node = |host: &str, port| {
            Value::Array(vec![
                Value::BulkString(host.into()),
                Value::Int(port),
                Value::BulkString("id".into()),
            ])
        };
        let range = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let reply = Value::Array(vec![
            range(8192, 16_000, vec![node("b", 2), node("c", 3)]),
            range(0, 8191, vec![node("", 1)]),
        ]);
        let map = SlotMap::read(&reply, "asked").unwrap();
        let master = |slot| map.master(slot).map(|node| (node.host.as_str(), node.port));
        assert_eq!([master(0), master(8191)], [Some(("asked", 1)); 2]);
        assert_eq!([master(8192), master(16_000)], [Some(("b", 2)); 2]);
        assert_eq!(master(16_001), None);
        assert_eq!(map.nodes().len(), 3);
        let (b, c) = (NodeAddress { host: "b".into(), port: 2 }, NodeAddress { host: "c".into(), port: 3 });
        let name = map.channel_on(&b, "probe").unwrap();
        assert_eq!(map.master(slot_of(&name)), Some(&b));
        assert_eq!(map.channel_on(&c, "probe"), None, "a replica has no slots");
        assert_eq!(SlotMap::read(&Value::Nil, "asked"), None);
    }
}
