//! The PROXY protocol, versions 1 and 2, in and out: the first bytes of a connection that a proxy opens, which say
//! whose connection it is (HAProxy, doc/proxy-protocol.txt).
//!
//! `read_header` takes the header and not one byte behind it, so TLS or HTTP can follow on the bare stream. Whether the
//! peer may send one is not decided here: whoever reads one believes it. Extensions (TLVs) are skipped, checksums
//! among them. What a LOCAL, UNKNOWN or Unix header says about addresses is nothing.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of version 2.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The first bytes of version 1.
const V1_PREFIX: &[u8; 6] = b"PROXY ";
/// The longest line of version 1, with its CR LF (section 2.1).
const V1_MAX_LEN: usize = 107;
/// The bytes of version 2 up to its length.
const V2_FIXED_LEN: usize = 16;
/// The most bytes behind the length that are taken. Addresses have at most 216, the rest is for extensions: a client
/// certificate of a TLS front is the longest in use.
const V2_MAX_REST: usize = 4096;
/// Bytes of two IPv4 addresses and two ports.
const V2_IPV4_LEN: usize = 12;
/// Bytes of two IPv6 addresses and two ports.
const V2_IPV6_LEN: usize = 36;

/// How a header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// The two ends of a client's connection, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyAddresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// Why a header is none.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The first bytes are those of something else.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// A version, command, family or transport that nobody has defined or that no stream can have.
    #[error("the PROXY header has the unknown {0} {1:#04x}")]
    Unknown(&'static str, u8),
    /// The line of version 1 is malformed.
    #[error("the PROXY line is malformed")]
    Malformed,
    /// It is longer than a header may be.
    #[error("the PROXY header is too long")]
    TooLong,
    /// The addresses do not fit into its length.
    #[error("the PROXY header is too short for its addresses")]
    TooShort,
    /// The stream ended before it.
    #[error("the connection ended within its PROXY header")]
    Truncated,
    /// It did not come in time.
    #[error("the PROXY header did not come within {0:?}")]
    Timeout(Duration),
    /// The stream is broken.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header that `stream` begins with; `None` where it says nothing about a client.
///
/// # Errors
///
/// See [`ProxyHeaderError`]; the connection is of no use then.
pub(crate) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<Option<ProxyAddresses>, ProxyHeaderError> {
    tokio::time::timeout(within, read_until_complete(stream))
        .await
        .unwrap_or(Err(ProxyHeaderError::Timeout(within)))
}

async fn read_until_complete(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<ProxyAddresses>, ProxyHeaderError> {
    let mut header = Vec::with_capacity(V1_MAX_LEN);
    loop {
        match parse_header(&header)? {
            ProxyHeaderStep::Complete(ends) => return Ok(ends),
            ProxyHeaderStep::More(most) => {
                let mut part = (&mut *stream).take(most as u64);
                if part.read_buf(&mut header).await? == 0 {
                    return Err(ProxyHeaderError::Truncated);
                }
            }
        }
    }
}

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum ProxyHeaderStep {
    /// It goes on; so many bytes certainly belong to it.
    More(usize),
    /// This is all of it.
    Complete(Option<ProxyAddresses>),
}

/// `bytes` are the first of the stream and none from behind the header.
pub fn parse_header(bytes: &[u8]) -> Result<ProxyHeaderStep, ProxyHeaderError> {
    if bytes.starts_with(V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if bytes.starts_with(V1_PREFIX) {
        return parse_v1(bytes);
    }
    if V2_SIGNATURE.starts_with(bytes) || V1_PREFIX.starts_with(bytes) {
        // No header is shorter than the signature of version 2.
        return Ok(ProxyHeaderStep::More(V2_SIGNATURE.len() - bytes.len()));
    }
    Err(ProxyHeaderError::Missing)
}

fn parse_v1(bytes: &[u8]) -> Result<ProxyHeaderStep, ProxyHeaderError> {
    if let Some(text) = bytes.strip_suffix(b"\r\n") {
        let text = str::from_utf8(text).map_err(|_| ProxyHeaderError::Malformed)?;
        return parse_v1_fields(text).map(ProxyHeaderStep::Complete).ok_or(ProxyHeaderError::Malformed);
    }
    let ends_in_cr = bytes.ends_with(b"\r");
    let inside = if ends_in_cr { &bytes[..bytes.len() - 1] } else { bytes };
    if inside.iter().any(u8::is_ascii_control) {
        return Err(ProxyHeaderError::Malformed);
    }
    match V1_MAX_LEN - bytes.len() {
        0 => Err(ProxyHeaderError::TooLong),
        // Two bytes at a time until the CR, so that nothing behind the LF is taken.
        left => Ok(ProxyHeaderStep::More(if ends_in_cr { 1 } else { left.min(2) })),
    }
}

/// A line without its CR LF; `None` where it is malformed.
fn parse_v1_fields(text: &str) -> Option<Option<ProxyAddresses>> {
    let rest = text.strip_prefix("PROXY ")?;
    // Whatever else stands on such a line is to be ignored (section 2.1).
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let mut words = rest.split(' ');
    let family = words.next()?;
    let (source, destination) =
        (parse_address(family, words.next()?)?, parse_address(family, words.next()?)?);
    let (from, to) = (parse_port(words.next()?)?, parse_port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    Some(Some(canonical(SocketAddr::new(source, from), SocketAddr::new(destination, to))))
}

fn parse_address(family: &str, text: &str) -> Option<IpAddr> {
    match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An IPv4 client is one, whichever way it is written.
fn canonical(source: SocketAddr, destination: SocketAddr) -> ProxyAddresses {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    ProxyAddresses { source: plain(source), destination: plain(destination) }
}

fn parse_v2(bytes: &[u8]) -> Result<ProxyHeaderStep, ProxyHeaderError> {
    if let Some(version) = bytes.get(12).map(|byte| byte >> 4).filter(|version| *version != 2) {
        return Err(ProxyHeaderError::Unknown("version", version));
    }
    if bytes.len() < V2_FIXED_LEN {
        return Ok(ProxyHeaderStep::More(V2_FIXED_LEN - bytes.len()));
    }
    let (command, family) = (bytes[12], bytes[13]);
    let is_local = match command & 0xf {
        0 => true,
        1 => false,
        other => return Err(ProxyHeaderError::Unknown("command", other)),
    };
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > V2_MAX_REST {
        return Err(ProxyHeaderError::TooLong);
    }
    let rest = &bytes[V2_FIXED_LEN..];
    if rest.len() < length {
        return Ok(ProxyHeaderStep::More(length - rest.len()));
    }
    // The family of a LOCAL header is to be ignored (section 2.2).
    Ok(ProxyHeaderStep::Complete(if is_local { None } else { parse_v2_addresses(family, rest)? }))
}

fn parse_v2_addresses(family: u8, rest: &[u8]) -> Result<Option<ProxyAddresses>, ProxyHeaderError> {
    let at = |from: usize| u16::from_be_bytes([rest[from], rest[from + 1]]);
    match family {
        0x11 if rest.len() >= V2_IPV4_LEN => {
            let ip = |from: usize| {
                Ipv4Addr::from_octets([rest[from], rest[from + 1], rest[from + 2], rest[from + 3]])
            };
            Ok(Some(canonical((ip(0), at(8)).into(), (ip(4), at(10)).into())))
        }
        0x21 if rest.len() >= V2_IPV6_LEN => {
            let ip = |from: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&rest[from..from + 16]);
                Ipv6Addr::from_octets(octets)
            };
            Ok(Some(canonical((ip(0), at(32)).into(), (ip(16), at(34)).into())))
        }
        0x11 | 0x21 => Err(ProxyHeaderError::TooShort),
        // Unspecified, and Unix sockets: paths name no client.
        0x00 | 0x31 => Ok(None),
        other => Err(ProxyHeaderError::Unknown("family", other)),
    }
}

/// The header of a connection that is opened for a client, or, without one, for the balancer itself (a probe).
pub fn encode_header(version: ProxyProtocolVersion, ends: Option<ProxyAddresses>) -> Vec<u8> {
    let ends = ends.map(unify_family);
    match version {
        ProxyProtocolVersion::V1 => encode_v1(ends).into_bytes(),
        ProxyProtocolVersion::V2 => encode_v2(ends),
    }
}

/// A header has one family, and the client's decides: of a destination of the other, only the port is told.
fn unify_family(both: ProxyAddresses) -> ProxyAddresses {
    let ProxyAddresses { source, destination } = canonical(both.source, both.destination);
    if source.is_ipv4() == destination.is_ipv4() {
        return ProxyAddresses { source, destination };
    }
    let nowhere: IpAddr =
        if source.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    ProxyAddresses { source, destination: SocketAddr::new(nowhere, destination.port()) }
}

fn encode_v1(ends: Option<ProxyAddresses>) -> String {
    let Some(ProxyAddresses { source, destination }) = ends else { return "PROXY UNKNOWN\r\n".into() };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let mut line = String::with_capacity(V1_MAX_LEN);
    // Writing to a string cannot fail.
    let _ = write!(
        line,
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    );
    line
}

fn encode_v2(ends: Option<ProxyAddresses>) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    let Some(ProxyAddresses { source, destination }) = ends else {
        header.extend_from_slice(&[0x20, 0, 0, 0]);
        return header;
    };
    let (family, length) =
        if source.is_ipv4() { (0x11, V2_IPV4_LEN as u8) } else { (0x21, V2_IPV6_LEN as u8) };
    header.extend_from_slice(&[0x21, family, 0, length]);
    for end in [source, destination] {
        match end.ip() {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn both(source: &str, destination: &str) -> ProxyAddresses {
        ProxyAddresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// What a stream of these bytes begins with, and what is left of it.
    fn taken(bytes: &[u8]) -> Result<(Option<ProxyAddresses>, Vec<u8>), ProxyHeaderError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut stream = bytes;
            let ends = read_header(&mut stream, SOON).await?;
            Ok((ends, stream.to_vec()))
        })
    }

    /// The same, when each read brings one byte.
    fn taken_by_bytes(bytes: &[u8]) -> Result<Option<ProxyAddresses>, ProxyHeaderError> {
        for end in 0..=bytes.len() {
            match parse_header(&bytes[..end])? {
                ProxyHeaderStep::Complete(ends) => return Ok(ends),
                ProxyHeaderStep::More(0) => panic!("nothing is waited for at {end}"),
                ProxyHeaderStep::More(_) => {}
            }
        }
        Err(ProxyHeaderError::Truncated)
    }

    fn fault(bytes: &[u8]) -> String {
        let said = taken(bytes).unwrap_err().to_string();
        assert_eq!(taken_by_bytes(bytes).unwrap_err().to_string(), said, "{}", bytes.escape_ascii());
        said
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn the_lines_of_version_1_say_whose_connection_it_is() {
        for (line, ends) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n",
                Some(both("192.0.2.1:56324", "198.51.100.7:443")),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
                Some(both("[2001:db8::1]:1", "[2001:db8::2]:65535")),
            ),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some(both("192.0.2.1:1", "[::1]:2"))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 whatever else 1\r\n", None),
        ] {
            let stream = [line.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(taken(&stream).unwrap(), (ends, b"GET / HTTP/1.1\r\n".to_vec()), "{line}");
            assert_eq!(taken_by_bytes(&stream).unwrap(), ends);
        }
    }

    #[test]
    fn the_longest_line_fits_and_one_byte_more_does_not() {
        let fill = |length: usize| format!("PROXY UNKNOWN {}\r\n", "f".repeat(length - 16));
        assert_eq!(fill(107).len(), 107);
        assert_eq!(taken(fill(107).as_bytes()).unwrap(), (None, vec![]));
        assert_eq!(fault(fill(108).as_bytes()), "the PROXY header is too long");
    }

    #[test]
    fn a_malformed_line_is_a_fault() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1\r192.0.2.2 1 2\r\n",
            "PROXY UNKNOWN \0\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.\u{fc} 1 2\r\n",
        ] {
            assert_eq!(fault(line.as_bytes()), "the PROXY line is malformed", "{line:?}");
        }
    }

    #[test]
    fn what_begins_with_no_header_is_seen_at_its_first_wrong_byte() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"P", b"PRO", b"\x16\x03\x01", b"\r\n\r\n\0\r\nQUIX", b"proxy "]
        {
            let ended = V2_SIGNATURE.starts_with(bytes) || V1_PREFIX.starts_with(bytes);
            let said = if ended { "the connection ended" } else { "the connection does not begin" };
            assert!(fault(bytes).starts_with(said), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn version_2_says_it_in_bytes_and_its_extensions_are_skipped() {
        let four = [192, 0, 2, 1, 198, 51, 100, 7, 0, 80, 1, 187];
        let ends = Some(both("192.0.2.1:80", "198.51.100.7:443"));
        let extended = [&four[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for header in [v2(0x21, 0x11, &four), v2(0x21, 0x11, &extended)] {
            let stream = [&header[..], b"behind"].concat();
            assert_eq!(taken(&stream).unwrap(), (ends, b"behind".to_vec()));
            assert_eq!(taken_by_bytes(&stream).unwrap(), ends);
        }
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 3, 4);
        assert_eq!(taken(&v2(0x21, 0x21, &six)).unwrap().0, Some(both("[::1]:3", "[::2]:4")));
    }

    #[test]
    fn local_unspecified_and_unix_headers_say_nothing_about_a_client() {
        for header in [
            v2(0x20, 0x00, &[]),
            v2(0x20, 0x11, &[1, 2, 3]),
            v2(0x20, 0xee, &[0; 40]),
            v2(0x21, 0x00, &[0; 5]),
            v2(0x21, 0x31, &[b'/'; 216]),
        ] {
            assert_eq!(taken(&header).unwrap(), (None, vec![]));
        }
    }

    #[test]
    fn what_version_2_does_not_define_is_a_fault() {
        assert_eq!(fault(&v2(0x11, 0x11, &[0; 12])), "the PROXY header has the unknown version 0x01");
        assert_eq!(fault(&v2(0x22, 0x11, &[0; 12])), "the PROXY header has the unknown command 0x02");
        assert_eq!(fault(&v2(0x21, 0x12, &[0; 12])), "the PROXY header has the unknown family 0x12");
        assert_eq!(fault(&v2(0x21, 0x11, &[0; 11])), "the PROXY header is too short for its addresses");
        assert_eq!(fault(&v2(0x21, 0x21, &[0; 35])), "the PROXY header is too short for its addresses");
        assert_eq!(fault(&v2(0x21, 0x11, &[0; 4097])), "the PROXY header is too long");
        assert!(taken(&v2(0x21, 0x11, &[0; 4096])).is_ok());
        assert_eq!(fault(&v2(0x21, 0x11, &[0; 12])[..20]), "the connection ended within its PROXY header");
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_trickles_in_or_never_comes_is_cut_by_its_deadline() {
        for word in [&b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2"[..], b""] {
            let (mut near, mut far) = tokio::io::duplex(64);
            let send = async {
                for byte in word {
                    near.write_u8(*byte).await.unwrap();
                    tokio::time::advance(Duration::from_secs(1)).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                read = read_header(&mut far, SOON) => assert!(matches!(read, Err(ProxyHeaderError::Timeout(SOON))), "{read:?}"),
                () = send => {}
            }
        }
    }

    #[test]
    fn without_a_client_the_header_is_of_the_balancer_itself() {
        assert_eq!(encode_header(ProxyProtocolVersion::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(encode_header(ProxyProtocolVersion::V2, None), v2(0x20, 0, &[]));
    }

    #[test]
    fn a_destination_of_the_other_family_does_not_hide_the_client() {
        let four = both("192.0.2.1:80", "[::1]:443");
        assert_eq!(
            encode_header(ProxyProtocolVersion::V1, Some(four)),
            b"PROXY TCP4 192.0.2.1 0.0.0.0 80 443\r\n"
        );
        let six = both("[2001:db8::1]:80", "192.0.2.1:443");
        assert_eq!(
            encode_header(ProxyProtocolVersion::V1, Some(six)),
            b"PROXY TCP6 2001:db8::1 :: 80 443\r\n"
        );
        let mapped = both("[::ffff:192.0.2.1]:80", "127.0.0.1:443");
        assert_eq!(
            encode_header(ProxyProtocolVersion::V1, Some(mapped)),
            b"PROXY TCP4 192.0.2.1 127.0.0.1 80 443\r\n"
        );
    }

    fn addresses() -> impl Strategy<Value = ProxyAddresses> {
        let four = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        let six =
            (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        (prop_oneof![four, six], any::<u16>(), any::<u16>())
            .prop_map(|((a, b), from, to)| canonical(SocketAddr::new(a, from), SocketAddr::new(b, to)))
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_and_nothing_behind_it_is_taken(said in addresses(), behind in any::<Vec<u8>>()) {
            for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
                let header = encode_header(version, Some(said));
                prop_assert!(header.len() <= 107);
                let (read, left) = taken(&[&header[..], &behind].concat()).unwrap();
                prop_assert_eq!(read, Some(unify_family(said)));
                prop_assert_eq!(left, behind.clone());
            }
        }

        #[test]
        fn garbage_is_a_fault_or_a_header_and_never_a_panic(
            start in prop_oneof![Just(&b""[..]), Just(&V2_SIGNATURE[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..])],
            rest in any::<Vec<u8>>(),
        ) {
            let bytes = [start, &rest].concat();
            match (taken(&bytes), taken_by_bytes(&bytes)) {
                (Ok((whole, _)), Ok(by_bytes)) => prop_assert_eq!(whole, by_bytes),
                (Err(whole), Err(by_bytes)) => prop_assert_eq!(whole.to_string(), by_bytes.to_string()),
                (whole, by_bytes) => prop_assert!(false, "{:?} and {:?}", whole, by_bytes),
            }
        }
    }
}
