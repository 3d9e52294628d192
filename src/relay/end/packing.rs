//! An end of a tunnel as fields of a parcel, and its socket while it is away.

use std::os::fd::OwnedFd;

use super::{End, Pending};
use crate::relay::parcel::field::{Fault, Fields, Tag, Writer};
use crate::relay::tls::{Heard, Side};

const PENDING: Tag = Tag(1, "pending");
const TLS: Tag = Tag(2, "TLS");
const HUNG_UP: Tag = Tag(3, "hung up");
const ENDED: Tag = Tag(4, "ended");
const FINISHED: Tag = Tag(5, "finished");
const BROKEN: Tag = Tag(6, "broken");
const FINISHING: Tag = Tag(7, "finishing");
const WORN: Tag = Tag(8, "worn");

impl End {
    /// Writes down all but the socket.
    pub fn pack(&self, writer: &mut Writer) {
        if let Some(pending) = &self.pending {
            writer.bytes(PENDING, &pending.bytes[pending.sent..]);
        }
        if let Some(side) = &self.tls {
            writer.section(TLS, |writer| side.pack(writer));
        }
        writer.mark(HUNG_UP, self.hung_up);
        writer.mark(ENDED, self.ended);
        writer.mark(FINISHED, self.finished);
        writer.mark(BROKEN, self.broken);
        writer.mark(FINISHING, self.finishing);
        writer.mark(WORN, self.worn);
    }

    /// Reads what [`pack`](Self::pack) wrote. Whether the socket has anything, the first poll tells; what TLS has
    /// received already it does not tell.
    pub fn unpack(mut fields: Fields<'_>, socket: OwnedFd) -> Result<Self, Fault> {
        let pending = fields.find(PENDING)?.filter(|bytes| !bytes.is_empty());
        let pending = pending.map(|bytes| Box::new(Pending { bytes: bytes.to_vec(), sent: 0 }));
        let tls = match fields.find(TLS)? {
            Some(bytes) => Some(Side::unpack(Fields::new(bytes, TLS.1))?),
            None => None,
        };
        let readable = tls.as_ref().is_some_and(|side| side.is_behind() || side.heard() != Heard::Open);
        let end = Self {
            pending,
            tls,
            readable,
            hung_up: fields.mark(HUNG_UP)?,
            ended: fields.mark(ENDED)?,
            finished: fields.mark(FINISHED)?,
            broken: fields.mark(BROKEN)?,
            finishing: fields.mark(FINISHING)?,
            worn: fields.mark(WORN)?,
            ..Self::new(socket)
        };
        fields.end()?;
        Ok(end)
    }

    /// Bytes that make the parcel longer than that of a tunnel at rest.
    pub fn weight(&self) -> usize {
        let pending = self.pending.as_ref().map_or(0, |pending| pending.bytes.len() - pending.sent);
        pending + self.tls.as_ref().map_or(0, |side| side.weight())
    }

    /// Takes the socket away, so that nothing can be read or sent.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// Puts the socket back. Whatever happened on it meanwhile, the first poll tells.
    pub fn put_socket(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }
}
