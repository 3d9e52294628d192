//! Which process listens where this one cannot: what `/proc` tells (proc_net(5), proc_pid_fd(5)).
//!
//! Only asked when an address is in use, to say so well. The kernel shows the descriptors of another user's processes to
//! root alone; then there is only its user to name. Nothing of it is certain: a process may end while it is looked for.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningProcess {
    /// Where, as `/proc` says it: `0.0.0.0:80` is in the way of each IPv4 address.
    pub address: String,
    /// Its id and name; `None` where the kernel does not show it.
    pub process: Option<(u32, String)>,
    /// Its user; `None` where that is not said.
    pub user: Option<u32>,
}

impl fmt::Display for ListeningProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.user) {
            (Some((id, name)), _) => write!(f, "{name} (process {id})")?,
            (None, Some(user)) => write!(f, "a process of the user {user}")?,
            (None, None) => f.write_str("another process")?,
        }
        write!(f, " listens on {}", self.address)
    }
}

impl ListeningProcess {
    /// Who keeps `address` from being listened on. `None` where nobody is found.
    pub fn on_tcp(address: SocketAddr) -> Option<Self> {
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
        let found = tables.iter().flat_map(|table| table.lines()).find_map(|line| {
            let entry = TcpEntry::parse(line)?;
            entry.is_in_the_way_of(address).then_some(entry)
        })?;
        let process = owner_of(found.inode);
        Some(Self { address: found.local.to_string(), process, user: Some(found.user) })
    }

    /// Who listens on the Unix socket at `path`. `None` where nobody is found.
    pub fn on_unix(path: &Path) -> Option<Self> {
        let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let inode = table.lines().find_map(|line| listening_inode(line, path.to_str()?))?;
        let process = owner_of(inode);
        Some(Self { address: format!("unix:{}", path.display()), process, user: None })
    }
}

/// A socket that listens on TCP.
#[derive(Debug, PartialEq, Eq)]
struct TcpEntry {
    local: SocketAddr,
    user: u32,
    inode: u64,
}

/// TCP_LISTEN of the kernel's tcp_states.h.
const LISTENING: &str = "0A";

impl TcpEntry {
    /// A line of `/proc/net/tcp` or `tcp6`; `None` for the titles and for sockets that do not listen.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (&local, &state, &user, &inode) =
            (fields.get(1)?, fields.get(3)?, fields.get(7)?, fields.get(9)?);
        if state != LISTENING {
            return None;
        }
        let (ip, port) = local.split_once(':')?;
        let local = SocketAddr::new(parse_address(ip)?, u16::from_str_radix(port, 16).ok()?);
        Some(Self { local, user: user.parse().ok()?, inode: inode.parse().ok()? })
    }

    fn is_in_the_way_of(&self, wanted: SocketAddr) -> bool {
        let (own, ip) = (self.local.ip(), wanted.ip());
        let same = own.to_canonical() == ip.to_canonical();
        // One that takes both families looks like one that takes IPv6 alone.
        let takes_all = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
        let is_all = ip.is_unspecified() && own.to_canonical().is_ipv4() == ip.is_ipv4();
        self.local.port() == wanted.port() && (same || takes_all || is_all)
    }
}

/// Words of 32 bits in hex, each in the byte order of the machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    if !hex.len().is_multiple_of(8) {
        return None;
    }
    let mut bytes = Vec::new();
    for word in hex.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The inode in a line of `/proc/net/unix`, if it is of a socket that listens at `path`.
fn listening_inode(line: &str, path: &str) -> Option<u64> {
    /// __SO_ACCEPTCON: the socket listens.
    const ACCEPTS: u32 = 0x10000;
    let line = line.strip_suffix(path)?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, flags, _, _, inode] = fields[..] else { return None };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    (flags & ACCEPTS != 0).then(|| inode.parse().ok()).flatten()
}

/// The first process that has the socket with this inode.
fn owner_of(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let has_it = |process: u32| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        descriptors
            .into_iter()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let process = processes.find(|process| has_it(*process))?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some((process, name.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 12345 1 \
                    0000000000000000 100 0 0 10 0";
        let ip = if cfg!(target_endian = "little") { [127, 0, 0, 1] } else { [1, 0, 0, 127] };
        let entry = TcpEntry { local: (ip, 8080).into(), user: 33, inode: 12345 };
        assert_eq!(TcpEntry::parse(line), Some(entry));
        assert_eq!(TcpEntry::parse(&line.replace(" 0A ", " 01 ")), None, "it does not listen");
        for none in ["", "  sl  local_address rem_address   st tx_queue", "0: 01:1 0:0 0A 0 0 0 0 0 1"] {
            assert_eq!(TcpEntry::parse(none), None, "{none}");
        }
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/a b.sock";
        assert_eq!(listening_inode(line, "/run/a b.sock"), Some(4711));
        assert_eq!(listening_inode(line, "b.sock"), None);
        assert_eq!(listening_inode(&line.replace("00010000", "00000000"), "/run/a b.sock"), None);
    }

    #[test]
    fn what_takes_all_addresses_is_in_the_way_of_each() {
        let is_in_the_way = |own: &str, wanted: &str| {
            let entry = TcpEntry { local: own.parse().unwrap(), user: 0, inode: 0 };
            entry.is_in_the_way_of(wanted.parse().unwrap())
        };
        for (own, wanted, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::1]:80", "[::]:80", true),
            ("[::ffff:127.0.0.1]:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::1]:80", "0.0.0.0:80", false),
        ] {
            assert_eq!(is_in_the_way(own, wanted), expected, "{own} and {wanted}");
        }
    }

    #[test]
    fn this_process_is_found_by_its_sockets() {
        let own = std::process::id();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = ListeningProcess::on_tcp(listener.local_addr().unwrap()).unwrap();
        assert_eq!(found.process.as_ref().map(|process| process.0), Some(own), "{found}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        assert_eq!(ListeningProcess::on_unix(&path), None);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = ListeningProcess::on_unix(&path).unwrap();
        let said = format!("(process {own}) listens on unix:{}", path.display());
        assert!(found.to_string().ends_with(&said), "{found}");
    }
}
