//! The PROXY header: fed as the reader asks for it and byte by byte, and written again.

use mainstay::net::proxy_protocol::{
    ProxyAddresses, ProxyHeaderError, ProxyHeaderStep, ProxyProtocolVersion, encode_header, parse_header,
};

/// One input: what a connection begins with.
pub fn run(data: &[u8]) {
    let asked = read(data, usize::MAX);
    let by_bytes = read(data, 1);
    match (&asked, &by_bytes) {
        (Some(Ok((ends, used))), Some(Ok((again, used_again)))) => {
            assert_eq!((ends, used), (again, used_again), "in pieces it is another header");
            if let Some(ends) = ends {
                written_again(*ends);
            }
        }
        (Some(Err(_)), Some(Err(_))) | (None, None) => {}
        // What is asked for at once may hold the fault behind the byte that ends the other.
        (Some(Err(_)), None) | (None, Some(Err(_))) => {}
        _ => panic!("in pieces it is another header: {asked:?}, {by_bytes:?}"),
    }
}

/// What a reader comes to that gets at most so many bytes at once, and how many it took; `None` when the bytes end.
fn read(bytes: &[u8], most: usize) -> Option<Result<(Option<ProxyAddresses>, usize), ProxyHeaderError>> {
    let mut end = 0;
    loop {
        match parse_header(&bytes[..end]) {
            Err(fault) => return Some(Err(fault)),
            Ok(ProxyHeaderStep::Complete(ends)) => return Some(Ok((ends, end))),
            Ok(ProxyHeaderStep::More(wanted)) => {
                assert!(wanted > 0, "nothing is waited for");
                if end == bytes.len() {
                    return None;
                }
                end = bytes.len().min(end + wanted.min(most));
            }
        }
    }
}

/// What was read is written in both forms, and read from them.
fn written_again(ends: ProxyAddresses) {
    for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
        let written = encode_header(version, Some(ends));
        let Some(Ok((Some(again), used))) = read(&written, usize::MAX) else {
            panic!("{ends:?} does not come back from {version:?}")
        };
        assert_eq!(used, written.len());
        // A header has one family: of a destination of the other, only the port is told.
        assert_eq!((again.source, again.destination.port()), (ends.source, ends.destination.port()));
        if ends.source.is_ipv4() == ends.destination.is_ipv4() {
            assert_eq!(again, ends);
        }
    }
}
