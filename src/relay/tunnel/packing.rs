//! A tunnel as a parcel: what it is, what it is held to, where it stands; and back.
//!
//! A tunnel that is frozen is in its slab without its sockets. One that was read from a parcel has its times on a
//! clock that shows [`BEGINNING`], until a thread takes it and shifts them to its own.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::{CLIENT, End, Live, NODE, Pipe, Pulse, Record};
use crate::metrics::{OUTCOMES, SOURCES, Side};
use crate::relay::Why;
use crate::relay::parcel::field::{Fault, Fields, Tag};
use crate::relay::parcel::{self, Shared};
use crate::relay::turn::BEGINNING;

const ID: Tag = Tag(1, "id");
const CLIENT_ADDRESS: Tag = Tag(2, "client");
const POOL: Tag = Tag(3, "pool");
const NODE_NAME: Tag = Tag(4, "node");
const ROUTE: Tag = Tag(5, "route");
const GENERATION: Tag = Tag(6, "generation");
/// Nanoseconds since the Unix epoch.
const OPENED_AT: Tag = Tag(7, "opened at");
const SOURCE: Tag = Tag(8, "affinity source");
const OUTCOME: Tag = Tag(9, "affinity outcome");
const TRACE: Tag = Tag(10, "trace");
/// Absent when the connection is counted nowhere; empty when it is nobody's.
const PLACE: Tag = Tag(11, "place");
const MAX_MESSAGE: Tag = Tag(12, "most bytes of a message");
const IDLE: Tag = Tag(13, "idle time");
/// So long ago, in milliseconds, as the two behind it.
const ADOPTED: Tag = Tag(14, "adopted");
const ACTIVE: Tag = Tag(15, "active");
const MESSAGED: Tag = Tag(16, "messaged");
/// In so long, in milliseconds.
const DEADLINE: Tag = Tag(17, "deadline");
const CAUSE_SIDE: Tag = Tag(18, "who ends it");
const CAUSE_CODE: Tag = Tag(19, "its close code");
const CAUSE_WHY: Tag = Tag(20, "why it ends");
const PARTING: Tag = Tag(21, "parting");
const PULSE: Tag = Tag(22, "the pulse");
const CLIENT_END: Tag = Tag(23, "the client's end");
const NODE_END: Tag = Tag(24, "the node's end");
const FROM_CLIENT: Tag = Tag(25, "the client's direction");
const FROM_NODE: Tag = Tag(26, "the node's direction");
/// What a version that does not know it may leave behind: it would place the client by its key all the same.
const KEY: Tag = Tag(128, "key");

/// What a word of a label is that this version does not have.
const OTHER: &str = "other";

impl Live {
    /// Whether the sockets are away.
    pub fn is_frozen(&self) -> bool {
        self.ends.iter().any(|end| end.socket().is_none())
    }

    /// Why it cannot be frozen now, if it cannot.
    pub fn stays(&self) -> Option<&'static str> {
        let weight: usize = self.ends.iter().map(End::weight).sum();
        (weight > parcel::MOST / 2).then_some("too much waits for a slow reader")
    }

    /// The parcel of the tunnel as it is at `now`.
    pub fn pack(&self, now: u64) -> Zeroizing<Vec<u8>> {
        let mut writer = parcel::begin();
        self.record.pack(&mut writer);
        writer.number(MAX_MESSAGE, self.max_message);
        writer.number(IDLE, self.idle);
        writer.number(ADOPTED, now.saturating_sub(self.adopted));
        writer.number(ACTIVE, now.saturating_sub(self.active));
        writer.maybe(MESSAGED, (self.messaged != 0).then(|| now.saturating_sub(self.messaged)));
        writer.maybe(DEADLINE, (self.deadline != u64::MAX).then(|| self.deadline.saturating_sub(now)));
        if let Some((side, code, why)) = self.cause {
            writer.number(CAUSE_SIDE, side as u8);
            writer.number(CAUSE_CODE, code);
            writer.bytes(CAUSE_WHY, why.as_str().as_bytes());
        }
        writer.mark(PARTING, self.parting);
        writer.section(PULSE, |writer| self.pulse.pack(writer, now));
        writer.section(CLIENT_END, |writer| self.ends[CLIENT].pack(writer));
        writer.section(NODE_END, |writer| self.ends[NODE].pack(writer));
        writer.section(FROM_CLIENT, |writer| self.pipes[CLIENT].pack(writer));
        writer.section(FROM_NODE, |writer| self.pipes[NODE].pack(writer));
        writer.maybe(KEY, self.record.key);
        writer.finish()
    }

    /// Reads what [`pack`](Self::pack) wrote. The sockets, the client's and the node's, are not touched.
    pub fn unpack<'a>(
        bytes: &'a [u8],
        sockets: [OwnedFd; 2],
        shared: &mut Shared<'a>,
    ) -> Result<Self, Fault> {
        let mut fields = parcel::open(bytes)?;
        let fields = &mut fields;
        let [client, node] = sockets;
        let before = |ago: u64| BEGINNING.saturating_sub(ago);
        let mut live = Self {
            record: Record::unpack(fields, shared)?,
            max_message: fields.number(MAX_MESSAGE)?,
            idle: fields.number(IDLE)?,
            adopted: before(fields.number(ADOPTED)?),
            active: before(fields.number(ACTIVE)?),
            messaged: fields.maybe(MESSAGED)?.map_or(0, |ago| before(ago).max(1)),
            deadline: fields.maybe(DEADLINE)?.map_or(u64::MAX, |left| BEGINNING.saturating_add(left)),
            cause: cause(fields)?,
            parting: fields.mark(PARTING)?,
            pulse: Pulse::unpack(fields.section(PULSE)?, BEGINNING)?,
            ends: [
                End::unpack(fields.section(CLIENT_END)?, client)?,
                End::unpack(fields.section(NODE_END)?, node)?,
            ],
            pipes: [Pipe::unpack(fields.section(FROM_CLIENT)?)?, Pipe::unpack(fields.section(FROM_NODE)?)?],
            queued: false,
        };
        live.record.key = fields.maybe(KEY)?;
        fields.end()?;
        Ok(live)
    }

    /// The clock of the thread that takes it shows `now`.
    pub fn shift(&mut self, now: u64) {
        let by = now - BEGINNING;
        self.adopted += by;
        self.active += by;
        if self.messaged != 0 {
            self.messaged += by;
        }
        self.deadline = self.deadline.saturating_add(by);
        self.pulse.shift(by);
    }

    /// Takes the sockets away, the client's and the node's; `None` when they are away.
    pub fn take_sockets(&mut self) -> Option<[OwnedFd; 2]> {
        let [client, node] = self.ends.each_mut().map(End::take_socket);
        Some([client?, node?])
    }

    /// Puts the sockets back.
    pub fn put_sockets(&mut self, sockets: [OwnedFd; 2]) {
        for (end, socket) in self.ends.iter_mut().zip(sockets) {
            end.put_socket(socket);
        }
    }
}

impl Record {
    fn pack(&self, writer: &mut parcel::field::Writer) {
        writer.number(ID, self.id);
        writer.bytes(CLIENT_ADDRESS, &octets(self.client));
        writer.bytes(POOL, self.seat.pool.as_bytes());
        writer.bytes(NODE_NAME, self.seat.node.as_bytes());
        writer.bytes(ROUTE, self.route.as_bytes());
        writer.number(GENERATION, self.generation);
        let since = self.opened_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        writer.number(OPENED_AT, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        writer.bytes(SOURCE, self.affinity.0.as_bytes());
        writer.bytes(OUTCOME, self.affinity.1.as_bytes());
        writer.bytes(TRACE, &self.trace);
        if let Some(place) = &self.place {
            writer.bytes(PLACE, &place.client().map(octets).unwrap_or_default());
        }
    }

    fn unpack<'a>(fields: &mut Fields<'a>, shared: &mut Shared<'a>) -> Result<Self, Fault> {
        let id = fields.number(ID)?;
        let client = address(fields.bytes(CLIENT_ADDRESS)?).ok_or(fields.wrong(CLIENT_ADDRESS))?;
        let (pool, node) = (fields.text(POOL)?, fields.text(NODE_NAME)?);
        let route = shared.route(fields.text(ROUTE)?);
        let generation = fields.number(GENERATION)?;
        let opened_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(fields.number(OPENED_AT)?));
        let opened_at = opened_at.ok_or(fields.wrong(OPENED_AT))?;
        let affinity = (word(&SOURCES, fields.text(SOURCE)?), word(&OUTCOMES, fields.text(OUTCOME)?));
        let trace = *fields.exact(TRACE)?;
        let place = match fields.find(PLACE)? {
            None => None,
            Some([]) => shared.place(None),
            Some(bytes) => shared.place(Some(address(bytes).ok_or(fields.wrong(PLACE))?)),
        };
        let seat = shared.seat(pool, node);
        Ok(Self { id, client, seat, route, generation, opened_at, affinity, key: None, trace, place })
    }
}

/// Who began the end, with which code, and why.
fn cause(fields: &mut Fields<'_>) -> Result<Option<(Side, u16, Why)>, Fault> {
    let Some(side) = fields.maybe::<u8>(CAUSE_SIDE)? else { return Ok(None) };
    let side = Side::ALL.get(usize::from(side)).copied().ok_or(fields.wrong(CAUSE_SIDE))?;
    let code = fields.number(CAUSE_CODE)?;
    let why = Why::named(fields.text(CAUSE_WHY)?);
    Ok(Some((side, code, why)))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    four.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

/// A word of a label, as long as this version has it.
fn word(known: &[&'static str], word: &str) -> &'static str {
    known.iter().find(|known| **known == word).unwrap_or(&OTHER)
}
