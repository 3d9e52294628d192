//! Where to listen.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `0.0.0.0:8080`, `[::]:8080`; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// `unix:/run/mainstay.sock`; at most 107 bytes of path, which is what the kernel takes (unix(7)).
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether no two sockets can listen on this and on `other`: they are one, or one takes in the other, as `0.0.0.0`
    /// does with every IPv4 address. `[::]` is IPv6 alone. Port 0 is another one each time.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                let same_family = one.is_ipv4() == other.is_ipv4();
                let any = one.ip().is_unspecified() || other.ip().is_unspecified();
                one.port() == other.port()
                    && one.port() != 0
                    && same_family
                    && (any || one.ip() == other.ip())
            }
            _ => self == other,
        }
    }
}

/// The longest path of a Unix socket, in bytes.
const LONGEST_PATH: usize = 107;

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err("no path after `unix:`; write unix:/run/mainstay.sock".into()),
                length if length > LONGEST_PATH => Err(format!(
                    "a Unix socket's path of {length} bytes; the kernel takes at most {LONGEST_PATH}"
                )),
                _ => Ok(Self::Unix(path.into())),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| wrong(text))
    }
}

fn wrong(text: &str) -> String {
    let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let example = match port {
        Some(port) => format!("0.0.0.0:{port}, [::]:{port}"),
        None => "0.0.0.0:8080, [::]:8080".into(),
    };
    let shown = super::fault::quoted(text);
    format!("{shown} is no address to listen on; write an IP address and a port ({example}) or unix:/path")
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_shown() {
        for text in
            ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:0", "[::1]:65535", "unix:/run/x.sock", "unix:x.sock"]
        {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_address_of_all_interfaces_excludes_each_of_its_family_on_its_port() {
        let excludes = |one: &str, other: &str| {
            let (one, other): (ListenAddress, ListenAddress) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.excludes(&other), other.excludes(&one));
            one.excludes(&other)
        };
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", false),
            ("[::]:80", "127.0.0.1:80", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "0.0.0.0:80", false),
        ] {
            assert_eq!(excludes(one, other), expected, "{one} and {other}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_right() {
        for text in
            ["", ":8080", "8080", "localhost:8080", "0.0.0.0", "[::]", "::8080x", "0.0.0.0:65536", "unix:"]
        {
            assert!(text.parse::<ListenAddress>().unwrap_err().contains("write"), "{text}");
        }
        assert!(":8081".parse::<ListenAddress>().unwrap_err().contains("0.0.0.0:8081"));
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<ListenAddress>().is_err());
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<ListenAddress>().is_ok());
    }
}
