//! Alerts: which one answers an error of the peer's, and what an alert of the peer's means.
//!
//! The table is what rustls does; the sections are those of RFC 8446 and, for TLS 1.2, RFC 5246.

use crate::net::tls::extracted::TlsProtocolVersion;

/// The alert that closes a direction (RFC 8446 section 6.1).
pub(super) const CLOSE_NOTIFY: [u8; 2] = [WARNING, 0];
/// TLS 1.2: the answer to a request to renegotiate (RFC 5246 section 7.2.2).
pub(super) const NO_RENEGOTIATION: [u8; 2] = [WARNING, 100];

const WARNING: u8 = 1;
const FATAL: u8 = 2;
const USER_CANCELED: u8 = 90;

/// An error of a peer's that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// A record that does not decrypt: wrong tag, replayed, too short, or after the last sequence number.
    BadRecord,
    /// Bytes that are no TLS record, or a message of a wrong length.
    NotTls,
    /// A record, a message or an alert that is not allowed here; or too many that carry nothing.
    Unexpected,
    /// A record over the limit of section 5.1 or 5.2.
    TooLong,
    /// A field with a value that does not exist.
    IllegalValue,
    /// A fatal alert of the peer's, or a warning that TLS 1.3 does not know: nothing answers it.
    AlertReceived,
}

impl RecordError {
    /// The alert that tells the peer, if one does.
    pub(crate) const fn alert(self) -> Option<[u8; 2]> {
        let description = match self {
            Self::Unexpected => 10,
            Self::BadRecord => 20,
            Self::TooLong => 22,
            Self::IllegalValue => 47,
            Self::NotTls => 50,
            Self::AlertReceived => return None,
        };
        Some([FATAL, description])
    }
}

/// What an alert of the peer's means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AlertKind {
    /// The peer sends nothing more.
    CloseNotify,
    /// A warning that changes nothing; only a few are tolerated.
    Warning,
}

/// Parses an alert (RFC 8446 section 6: in TLS 1.3 all but two are fatal, whatever their level says).
pub(super) fn parse(version: TlsProtocolVersion, alert: &[u8]) -> Result<AlertKind, RecordError> {
    let &[level, description] = alert else { return Err(RecordError::NotTls) };
    if level != WARNING && level != FATAL {
        return Err(RecordError::IllegalValue);
    }
    match (description, level) {
        (0, _) => Ok(AlertKind::CloseNotify),
        (USER_CANCELED, WARNING) => Ok(AlertKind::Warning),
        (_, WARNING) if version == TlsProtocolVersion::Tls12 => Ok(AlertKind::Warning),
        _ => Err(RecordError::AlertReceived),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_notify_and_harmless_warnings_leave_the_connection_open() {
        for version in [TlsProtocolVersion::Tls12, TlsProtocolVersion::Tls13] {
            assert_eq!(parse(version, &CLOSE_NOTIFY), Ok(AlertKind::CloseNotify));
            assert_eq!(parse(version, &[FATAL, 0]), Ok(AlertKind::CloseNotify));
            assert_eq!(parse(version, &[WARNING, USER_CANCELED]), Ok(AlertKind::Warning));
            assert_eq!(parse(version, &[FATAL, 40]), Err(RecordError::AlertReceived));
            assert_eq!(parse(version, &[3, 40]), Err(RecordError::IllegalValue));
            assert_eq!(parse(version, &[WARNING]), Err(RecordError::NotTls));
            assert_eq!(parse(version, &[WARNING, 0, 0]), Err(RecordError::NotTls));
        }
        assert_eq!(parse(TlsProtocolVersion::Tls12, &NO_RENEGOTIATION), Ok(AlertKind::Warning));
        assert_eq!(parse(TlsProtocolVersion::Tls13, &NO_RENEGOTIATION), Err(RecordError::AlertReceived));
    }
}
