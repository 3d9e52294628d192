//! The rules for one whole request head.
//!
//! The input is everything from the method to the empty line, already free of bare CR, bare LF and control bytes
//! (the framer sees to that as bytes come in). The answer is how the request's body is framed, or an error. Where
//! RFC 9112 lets a recipient choose between repairing and refusing, this refuses.

use http::Uri;
use http::uri::Authority;

use super::HeadError;
use crate::ws::handshake::names_websocket;

/// Field lines that one head may have; hyper's own limit is the same.
pub(super) const MAX_FIELDS: usize = 100;

/// How the bytes behind a head are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// Another head.
    Empty,
    /// A body of so many bytes, at least one, then another head.
    Length(u64),
    /// A chunked body, then another head.
    Chunked,
    /// Another protocol, if the balancer agrees: the head asks for a WebSocket, or to CONNECT.
    Upgrade,
}

/// Checks a whole head, which ends in an empty line.
pub(super) fn check_head(head: &[u8]) -> Result<BodyFraming, HeadError> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = RequestLine::parse(lines.next().unwrap_or_default())?;
    let mut fields = FramingFields::default();
    for (index, field) in lines.take_while(|line| !line.is_empty()).enumerate() {
        if index == MAX_FIELDS {
            return Err(HeadError::TooManyFields(MAX_FIELDS));
        }
        fields.record(field)?;
    }
    fields.check_host(&line)?;
    fields.body_framing(&line)
}

/// The first line of a head.
struct RequestLine<'a> {
    method: &'a [u8],
    target: Uri,
    /// HTTP/1.1, not HTTP/1.0.
    is_1_1: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, HeadError> {
        if line == b"PRI * HTTP/2.0" {
            return Err(HeadError::Http2Preface);
        }
        let mut words = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(HeadError::RequestLine);
        };
        if target.is_empty() || method.is_empty() {
            return Err(HeadError::RequestLine);
        }
        if !is_token(method) {
            return Err(HeadError::Method);
        }
        let is_1_1 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(HeadError::Version),
        };
        Ok(Self { method, target: parse_target(method, target)?, is_1_1 })
    }
}

/// Reads a target in the form that its method allows (RFC 9112, 3.2.1 to 3.2.4).
fn parse_target(method: &[u8], target: &[u8]) -> Result<Uri, HeadError> {
    if !target.is_ascii() {
        return Err(HeadError::TargetNotAscii);
    }
    // `Uri` drops a fragment in silence, so that it would hide what the node is asked for.
    if target.contains(&b'#') {
        return Err(HeadError::Target);
    }
    let uri = Uri::try_from(target).map_err(|_| HeadError::Target)?;
    let is_well_formed = match uri.scheme_str() {
        Some(scheme) => scheme == "http" || scheme == "https",
        None if method == b"CONNECT" => uri.port_u16().is_some(),
        None if target == b"*" => method == b"OPTIONS",
        None => target.starts_with(b"/"),
    };
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if is_well_formed && !has_user { Ok(uri) } else { Err(HeadError::Target) }
}

/// What the field lines say about the host and about framing.
#[derive(Default)]
struct FramingFields {
    host: Option<Authority>,
    length: Option<u64>,
    is_chunked: bool,
    has_upgrade: bool,
}

impl FramingFields {
    fn record(&mut self, line: &[u8]) -> Result<(), HeadError> {
        let (name, value) = split_field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            self.record_host(value)
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.record_length(value)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::TransferEncoding);
            }
            self.is_chunked = true;
            Ok(())
        } else {
            self.has_upgrade |= name.eq_ignore_ascii_case(b"upgrade") && names_websocket(value);
            Ok(())
        }
    }

    fn record_host(&mut self, value: &[u8]) -> Result<(), HeadError> {
        if self.host.is_some() {
            return Err(HeadError::TwoHosts);
        }
        let host = Authority::try_from(value).map_err(|_| HeadError::Host)?;
        if host.host().is_empty() || host.as_str().contains('@') || !has_sound_port(&host) {
            return Err(HeadError::Host);
        }
        self.host = Some(host);
        Ok(())
    }

    fn record_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        if self.length.is_some() {
            return Err(HeadError::TwoLengths);
        }
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(HeadError::ContentLength);
        }
        let length = str::from_utf8(value).ok().and_then(|digits| digits.parse::<i64>().ok());
        self.length = Some(length.ok_or(HeadError::ContentLength)?.unsigned_abs());
        Ok(())
    }

    fn check_host(&self, line: &RequestLine<'_>) -> Result<(), HeadError> {
        match (&self.host, line.target.authority()) {
            (None, _) if line.is_1_1 => Err(HeadError::NoHost),
            (Some(host), Some(authority)) if host != authority => Err(HeadError::HostDiffers),
            _ => Ok(()),
        }
    }

    fn body_framing(&self, line: &RequestLine<'_>) -> Result<BodyFraming, HeadError> {
        if self.is_chunked && self.length.is_some() {
            return Err(HeadError::EncodingAndLength);
        }
        if self.is_chunked && !line.is_1_1 {
            return Err(HeadError::EncodingInHttp10);
        }
        if self.has_upgrade || line.method == b"CONNECT" {
            return Ok(BodyFraming::Upgrade);
        }
        Ok(match self.length {
            _ if self.is_chunked => BodyFraming::Chunked,
            None | Some(0) => BodyFraming::Empty,
            Some(length) => BodyFraming::Length(length),
        })
    }
}

/// A port is left out, or is a number that fits (`a:` and `a:99999` are neither).
fn has_sound_port(host: &Authority) -> bool {
    let behind_host = host.as_str().len() - host.host().len();
    behind_host == 0 || host.port_u16().is_some()
}

/// Splits a field line into its name and its value without the white space around it (RFC 9112, 5).
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::ObsFold);
    }
    let colon = memchr::memchr(b':', line).ok_or(HeadError::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if is_token(name) { Ok((name, trim(value))) } else { Err(HeadError::FieldName) }
}

/// Without the spaces and tabs at both ends; no other byte is optional white space (RFC 9110, 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_token(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|&byte| is_token_byte(byte))
}

/// RFC 9110, 5.6.2: `tchar`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
