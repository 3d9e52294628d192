//! An end of a tunnel as fields of a parcel, and its socket while it is away.

use std::os::fd::OwnedFd;

use super::{Endpoint, UnsentBytes};
use crate::relay::tls::{ReceiveState, TlsConnection};
use crate::relay::tunnel_state::field::{FieldReader, FieldTag, FieldWriter, TunnelStateError};

const PENDING: FieldTag = FieldTag(1, "pending");
const TLS: FieldTag = FieldTag(2, "TLS");
const HUNG_UP: FieldTag = FieldTag(3, "hung up");
const ENDED: FieldTag = FieldTag(4, "ended");
const FINISHED: FieldTag = FieldTag(5, "finished");
const BROKEN: FieldTag = FieldTag(6, "broken");
const FINISHING: FieldTag = FieldTag(7, "finishing");
const WORN: FieldTag = FieldTag(8, "worn");

impl Endpoint {
    /// Writes down all but the socket.
    pub fn encode(&self, writer: &mut FieldWriter) {
        if let Some(pending) = &self.unsent {
            writer.bytes(PENDING, &pending.bytes[pending.sent..]);
        }
        if let Some(tls) = &self.tls {
            writer.section(TLS, |writer| tls.encode(writer));
        }
        writer.flag(HUNG_UP, self.hung_up);
        writer.flag(ENDED, self.ended);
        writer.flag(FINISHED, self.finished);
        writer.flag(BROKEN, self.broken);
        writer.flag(FINISHING, self.finishing);
        writer.flag(WORN, self.worn);
    }

    /// Reads what [`pack`](Self::pack) wrote. Whether the socket has anything, the first poll tells; what TLS has
    /// received already it does not tell.
    pub fn decode(mut fields: FieldReader<'_>, socket: OwnedFd) -> Result<Self, TunnelStateError> {
        let pending = fields.find(PENDING)?.filter(|bytes| !bytes.is_empty());
        let pending = pending.map(|bytes| Box::new(UnsentBytes { bytes: bytes.to_vec(), sent: 0 }));
        let tls = match fields.find(TLS)? {
            Some(bytes) => Some(TlsConnection::decode(FieldReader::new(bytes, TLS.1))?),
            None => None,
        };
        let readable =
            tls.as_ref().is_some_and(|tls| tls.has_unopened() || tls.receive_state() != ReceiveState::Open);
        let endpoint = Self {
            unsent: pending,
            tls,
            readable,
            hung_up: fields.flag(HUNG_UP)?,
            ended: fields.flag(ENDED)?,
            finished: fields.flag(FINISHED)?,
            broken: fields.flag(BROKEN)?,
            finishing: fields.flag(FINISHING)?,
            worn: fields.flag(WORN)?,
            ..Self::new(socket)
        };
        fields.finish()?;
        Ok(endpoint)
    }

    /// Bytes that make the parcel longer than that of a tunnel at rest.
    pub fn extra_state_len(&self) -> usize {
        let pending = self.unsent.as_ref().map_or(0, |pending| pending.bytes.len() - pending.sent);
        pending + self.tls.as_ref().map_or(0, |tls| tls.extra_state_len())
    }

    /// Takes the socket away, so that nothing can be read or sent.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// Puts the socket back. Whatever happened on it meanwhile, the first poll tells.
    pub fn restore_socket(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }
}
