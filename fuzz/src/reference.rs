//! A second reader of HTTP/1 requests, small and slow: the whole stream at once, straight from RFC 9112.
//!
//! It knows no limits, and takes any text as a target or a host; for all else it is as strict as the RFC lets a proxy
//! be. It is what the framer is compared with.

/// How the bytes behind a head are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// So many bytes of a body.
    Body(u64),
    /// A chunked body.
    Chunks,
    /// Another protocol may: `Upgrade: websocket`, or CONNECT.
    Upgrade,
    /// An upgrade to something else, which a server may ignore (RFC 9110, 7.8); whether the body is chunked.
    OtherUpgrade(bool),
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Where its head lies in the stream.
    pub head: (usize, usize),
    /// What is behind it.
    pub follows: Follows,
}

/// Why nothing follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The stream ends, between two messages or within one.
    End,
    /// No reader can go on.
    Fault,
}

/// The messages of a stream. The last one may be cut short.
pub fn follow(stream: &[u8]) -> (Vec<Message>, Stop) {
    let mut messages = Vec::new();
    let mut at = 0;
    loop {
        if stream[at..].starts_with(b"\r\n") {
            at += 2;
        }
        let Some(length) = find(&stream[at..], b"\r\n\r\n").map(|place| place + 4) else {
            return (messages, Stop::End);
        };
        let Some(follows) = judge(&stream[at..at + length]) else { return (messages, Stop::Fault) };
        messages.push(Message { head: (at, at + length), follows });
        at += length;
        let body = match follows {
            Follows::Upgrade => return (messages, Stop::End),
            Follows::Body(length) => Some(length),
            Follows::Chunks | Follows::OtherUpgrade(true) => match chunks(&stream[at..]) {
                Ok(length) => length,
                Err(()) => return (messages, Stop::Fault),
            },
            Follows::OtherUpgrade(false) => length_of(&stream[at - length..at]),
        };
        match body {
            Some(length) if length <= (stream.len() - at) as u64 => at += length as usize,
            _ => return (messages, Stop::End),
        }
    }
}

/// The lines of a head without their ends and without the empty one; `None` where a line ends in anything else.
pub fn lines(head: &[u8]) -> Option<Vec<&[u8]>> {
    let mut lines = Vec::new();
    let mut rest = head.strip_suffix(b"\r\n")?;
    while !rest.is_empty() {
        let end = find(rest, b"\r\n")?;
        let line = &rest[..end];
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return None;
        }
        lines.push(line);
        rest = &rest[end + 2..];
    }
    Some(lines)
}

/// Name and value of a field line (RFC 9112, 5).
pub fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    is_token(name).then(|| (name, value.trim_ascii()))
}

/// How the body of a sound head is framed; `None` for a head that is not.
fn judge(head: &[u8]) -> Option<Follows> {
    let lines = lines(head)?;
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    if !lines.iter().all(|line| line.iter().all(is_text)) {
        return None;
    }
    let words: Vec<&[u8]> = lines.first()?.split(|&byte| byte == b' ').collect();
    let &[method, target, version] = words.as_slice() else { return None };
    let is_1_1 = version == b"HTTP/1.1";
    if !is_token(method) || target.is_empty() || !target.is_ascii() || (!is_1_1 && version != b"HTTP/1.0") {
        return None;
    }
    let fields: Vec<(&[u8], &[u8])> = lines[1..].iter().map(|line| field(line)).collect::<Option<_>>()?;
    let values = |name: &[u8]| -> Vec<&[u8]> {
        fields.iter().filter(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| *value).collect()
    };
    let (hosts, lengths, codings) =
        (values(b"host"), values(b"content-length"), values(b"transfer-encoding"));
    if hosts.len() > 1 || (is_1_1 && hosts.is_empty()) || lengths.len() > 1 || codings.len() > 1 {
        return None;
    }
    let is_chunked = match codings.first() {
        None => false,
        Some(coding) => {
            if !coding.eq_ignore_ascii_case(b"chunked") || !is_1_1 || !lengths.is_empty() {
                return None;
            }
            true
        }
    };
    let length = match lengths.first() {
        None => 0,
        Some(digits) => number(digits)?,
    };
    let upgrades = values(b"upgrade");
    if method == b"CONNECT" || upgrades.iter().any(|list| names_websocket(list)) {
        return Some(Follows::Upgrade);
    }
    Some(match (upgrades.is_empty(), is_chunked) {
        (false, is_chunked) => Follows::OtherUpgrade(is_chunked),
        (true, true) => Follows::Chunks,
        (true, false) => Follows::Body(length),
    })
}

/// What the Content-Length of a sound head says.
fn length_of(head: &[u8]) -> Option<u64> {
    let fields = lines(head)?;
    let length = fields[1..].iter().filter_map(|line| field(line));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case(b"content-length"));
    length.next().map_or(Some(0), |(_, digits)| number(digits))
}

/// Digits only, at most 2^63 − 1.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = str::from_utf8(digits).ok()?.parse::<i64>().ok()?;
    u64::try_from(number).ok()
}

/// The length of the chunked body at the head of `bytes` (RFC 9112, 7.1); `Ok(None)` when it goes on.
fn chunks(bytes: &[u8]) -> Result<Option<u64>, ()> {
    let mut at = 0;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + end];
        at += end + 2;
        let (digits, extension) = match line.iter().position(|&byte| byte == b';') {
            Some(place) => line.split_at(place),
            None => (line, &[][..]),
        };
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if !(1..=16).contains(&digits.len()) || !extension.iter().all(is_text) {
            return Err(());
        }
        let digits = str::from_utf8(digits).map_err(drop)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(());
        }
        let size = u64::from_str_radix(digits, 16).map_err(drop)?;
        if size == 0 {
            break;
        }
        if size > (bytes.len() - at) as u64 {
            return Ok(None);
        }
        at += size as usize;
        match bytes[at..].first_chunk::<2>() {
            Some(b"\r\n") => at += 2,
            Some(_) => return Err(()),
            None if bytes[at..].starts_with(b"\r") || bytes[at..].is_empty() => return Ok(None),
            None => return Err(()),
        }
    }
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some(at as u64));
        }
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if field(line).is_none() || !line.iter().all(is_text) {
            return Err(());
        }
    }
}

/// The value of an Upgrade field is a list of protocols.
fn names_websocket(list: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

fn is_token(word: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(is_tchar)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
