//! Handshake messages that a peer sends after the handshake (RFC 8446 section 4, RFC 5246 section 7.4).

use super::{MAX_WITHOUT_DATA, TlsConnection, count_up_to};
use crate::relay::tls::alert::{self, RecordError};
use crate::relay::tls::record::content_type;
use crate::relay::tls::state::TlsRole;

const HELLO_REQUEST: u8 = 0;
pub(super) const CLIENT_HELLO: u8 = 1;
pub(super) const TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;

impl TlsConnection {
    /// Handshake messages of TLS 1.3: a KeyUpdate or, from a server, tickets, which are ignored.
    #[cold]
    pub(super) fn receive_handshake_13(&mut self, messages: &[u8]) -> Result<(), RecordError> {
        match *messages {
            [KEY_UPDATE, 0, 0, 1, request] => {
                if request > 1 {
                    return Err(RecordError::IllegalValue);
                }
                self.messages_without_data = count_up_to(self.messages_without_data, MAX_WITHOUT_DATA)?;
                self.owes_key_update |= request == 1;
                self.rx.update_keys(self.cipher.suite);
                Ok(())
            }
            [TICKET, ..] if self.role == TlsRole::Client && are_tickets(messages) => {
                self.messages_without_data = count_up_to(self.messages_without_data, MAX_WITHOUT_DATA)?;
                Ok(())
            }
            _ => Err(RecordError::Unexpected),
        }
    }

    /// A handshake message of TLS 1.2: a request to renegotiate is refused once.
    #[cold]
    pub(super) fn receive_handshake_12(
        &mut self,
        messages: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        let request = match self.role {
            TlsRole::Server => CLIENT_HELLO,
            TlsRole::Client => HELLO_REQUEST,
        };
        if messages.first() != Some(&request) || self.has_refused_renegotiation {
            return Err(RecordError::Unexpected);
        }
        self.has_refused_renegotiation = true;
        if self.can_seal() {
            self.tx.seal(self.cipher, content_type::ALERT, &alert::NO_RENEGOTIATION, out);
        }
        Ok(())
    }
}

/// Whether these are whole NewSessionTickets and nothing else.
fn are_tickets(mut messages: &[u8]) -> bool {
    while let Some((&[kind, a, b, c], rest)) = messages.split_first_chunk() {
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        match rest.get(len..) {
            Some(behind) if kind == TICKET => messages = behind,
            _ => return false,
        }
    }
    messages.is_empty()
}
