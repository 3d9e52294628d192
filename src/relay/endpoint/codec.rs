//! An endpoint as fields of a tunnel state, and its socket while the tunnel is frozen.

use std::os::fd::OwnedFd;

use super::state::{ReadSide, WriteSide};
use super::{Endpoint, UnsentBytes};
use crate::relay::tls::{ReceiveState, TlsConnection};
use crate::relay::tunnel_state::TunnelStateError;
use crate::relay::tunnel_state::field::{FieldReader, FieldTag, FieldWriter};

const UNSENT: FieldTag = FieldTag(1, "unsent");
const TLS: FieldTag = FieldTag(2, "TLS");
const HUNG_UP: FieldTag = FieldTag(3, "hung up");
const ENDED: FieldTag = FieldTag(4, "ended");
const FINISHED: FieldTag = FieldTag(5, "finished");
const BROKEN: FieldTag = FieldTag(6, "broken");
const FINISHING: FieldTag = FieldTag(7, "finishing");
const KEYS_USED_UP: FieldTag = FieldTag(8, "keys used up");

impl Endpoint {
    /// Writes everything but the socket.
    pub(crate) fn encode(&self, writer: &mut FieldWriter) {
        if let Some(unsent) = &self.unsent {
            writer.bytes(UNSENT, &unsent.bytes[unsent.sent..]);
        }
        if let Some(tls) = &self.tls {
            writer.section(TLS, |writer| tls.encode(writer));
        }
        writer.flag(HUNG_UP, self.read.has_hung_up());
        writer.flag(ENDED, self.read.has_ended());
        writer.flag(FINISHED, self.write.is_finished());
        writer.flag(BROKEN, self.write.is_broken());
        writer.flag(FINISHING, self.write.is_finishing());
        writer.flag(KEYS_USED_UP, self.has_used_up_keys);
    }

    /// Reads what [`encode`](Self::encode) wrote. The first poll tells whether the socket has anything; it does not tell
    /// what TLS has received already.
    pub(crate) fn decode(mut fields: FieldReader<'_>, socket: OwnedFd) -> Result<Self, TunnelStateError> {
        let unsent = fields.find(UNSENT)?.and_then(|bytes| UnsentBytes::of(bytes.to_vec()));
        let tls = match fields.find(TLS)? {
            Some(bytes) => Some(TlsConnection::decode(FieldReader::new(bytes, TLS.1))?),
            None => None,
        };
        let is_readable =
            tls.as_ref().is_some_and(|tls| tls.has_unopened() || tls.receive_state() != ReceiveState::Open);
        let (has_hung_up, has_ended) = (fields.flag(HUNG_UP)?, fields.flag(ENDED)?);
        let (is_finished, is_broken) = (fields.flag(FINISHED)?, fields.flag(BROKEN)?);
        let is_finishing = fields.flag(FINISHING)?;
        let has_used_up_keys = fields.flag(KEYS_USED_UP)?;
        fields.finish()?;
        let read = ReadSide::restored(is_readable, has_hung_up, has_ended);
        let write = WriteSide::restored(is_broken, is_finishing, is_finished);
        Ok(Self { socket: Some(socket), tls, unsent, read, write, has_used_up_keys })
    }

    /// How many bytes longer the state is than that of an endpoint at rest.
    pub(crate) fn extra_state_len(&self) -> usize {
        let unsent = self.unsent.as_ref().map_or(0, |unsent| unsent.bytes.len() - unsent.sent);
        unsent + self.tls.as_ref().map_or(0, |tls| tls.extra_state_len())
    }

    /// Takes the socket away, so that nothing can be read or sent.
    pub(crate) fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// Puts the socket back. The first poll tells what has happened on it meanwhile.
    pub(crate) fn restore_socket(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }
}
