//! Where clients come in, and where the admin API is: the sections `listeners` and `admin`.

use std::path::{Path, PathBuf};

use super::reader::{Section, Value};
use super::tls;
use super::{AdminPlace, ListenAddress, ListenerTls, Places, Tokens};

/// Where clients come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The address; no two listeners share one, but for port 0.
    pub address: ListenAddress,
    /// Who may connect, where it is a Unix socket.
    pub access: FileAccess,
    /// Each connection begins with a PROXY header, and only `trusted_proxies` may open one.
    pub proxy_protocol: bool,
    /// How it speaks TLS; `None` is plain text.
    pub tls: Option<ListenerTls>,
}

/// Where metrics and health are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The address; a loopback address or a Unix socket where there are no tokens.
    pub address: ListenAddress,
    /// Who may connect, where it is a Unix socket.
    pub access: FileAccess,
    /// Where the tokens were read from, as written.
    pub token_file: Option<PathBuf>,
    /// Who does not show one of these is refused; `None` trusts everybody who can reach the address.
    pub tokens: Option<Tokens>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: ListenAddress::Tcp(([127, 0, 0, 1], 9090).into()),
            access: FileAccess::default(),
            token_file: None,
            tokens: None,
        }
    }
}

/// The permissions of a Unix socket's file, as the config says them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileAccess {
    /// The permission bits, up to 0o777.
    pub mode: Option<u32>,
    /// The group that owns the file: a name, or a number.
    pub group: Option<String>,
}

/// With a group and no mode: the owner and the group connect, nobody else.
const GROUP_MODE: u32 = 0o660;

impl FileAccess {
    /// The permission bits, where the config decides them: a group that could not connect would be of no use.
    pub fn effective_mode(&self) -> Option<u32> {
        self.mode.or(self.group.as_ref().map(|_| GROUP_MODE))
    }

    fn read(section: &Section) -> Self {
        let mode = section.some("mode").and_then(|value| {
            value.parsed("the permission bits in octal, such as \"0660\"", |text| {
                let digits = text.strip_prefix("0o").unwrap_or(text);
                let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                let mode = u32::from_str_radix(digits, 8).ok()?;
                (is_octal && mode <= 0o777).then_some(mode)
            })
        });
        let group = section.some("group").and_then(|value| {
            value.parsed("the name of a group, such as www-data, or its number", |text| {
                let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-$".contains(&b));
                (is_name && text.len() <= 64).then(|| text.to_owned())
            })
        });
        Self { mode, group }
    }

    /// Says where there is no file that this could be the access to.
    fn expect_unix(section: &Section, address: &ListenAddress) {
        if matches!(address, ListenAddress::Unix(_)) {
            return;
        }
        for key in ["mode", "group"] {
            if let Some(value) = section.some(key) {
                value.fault(format_args!(
                    "{address} has no file; only a Unix socket (`address: unix:/path`) has a mode and a group"
                ));
            }
        }
    }
}

/// The listeners; `has_proxies` says whether anybody is trusted to send a PROXY header.
pub(super) fn listeners(top: &Section, has_proxies: bool, places: &mut Places) -> Vec<Listener> {
    let Some(value) = top.value("listeners") else {
        let address = ListenAddress::Tcp(([0, 0, 0, 0], 8080).into());
        return vec![Listener { address, access: FileAccess::default(), proxy_protocol: false, tls: None }];
    };
    let mut listeners: Vec<Listener> = Vec::new();
    for item in value.some_items("- address: \"0.0.0.0:8080\"") {
        let section = item.section(&["address", "mode", "group", "proxy_protocol", "tls"]);
        let proxy_protocol = proxy_protocol(&section, has_proxies);
        let tls = tls::listener(&section);
        let access = FileAccess::read(&section);
        let example = "`address: \"0.0.0.0:8080\"`, for instance";
        let Some(value) = section.required("address", example) else { continue };
        let Some(address) = listen_address(&value) else { continue };
        FileAccess::expect_unix(&section, &address);
        let mut others = listeners.iter().map(|listener| &listener.address).zip(&places.listeners);
        if let Some((other, at)) = others.find(|(other, _)| other.excludes(&address)) {
            say_taken(&value, &address, other, &format!("the listener on line {}", at.line));
        }
        places.listeners.push(value.at());
        listeners.push(Listener { address, access, proxy_protocol, tls });
    }
    listeners
}

/// Says that `whose` address `other` leaves nothing to listen on at `address`.
fn say_taken(value: &Value, address: &ListenAddress, other: &ListenAddress, whose: &str) {
    if address == other {
        value.fault(format_args!(
            "{whose} has {address} already; write another address, or remove one of them"
        ));
    } else {
        value.fault(format_args!(
            "{whose} has {other}, and {address} is part of it; write another port, or remove one of them"
        ));
    }
}

fn proxy_protocol(listener: &Section, has_proxies: bool) -> bool {
    let Some(value) = listener.value("proxy_protocol") else { return false };
    let is_on = value.boolean().unwrap_or(false);
    if is_on && !has_proxies {
        value.fault("nobody is trusted to send it, so every connection would be cut; name the proxies in `trusted_proxies`");
    }
    is_on
}

fn listen_address(value: &Value) -> Option<ListenAddress> {
    value.typed("an address to listen on, such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/path\"")
}

pub(super) fn admin(top: &Section, listeners: &[Listener], places: &mut Places) -> Option<Admin> {
    let value = top.value("admin");
    if value.is_some_and(|admin| admin.is_null()) {
        return None;
    }
    let section = top.section("admin", ADMIN_KEYS);
    let tokens = section.some("token_file").and_then(|value| tokens(&value));
    let token_file = token_file(&section);
    let access = FileAccess::read(&section);
    let in_the_way =
        |address: &ListenAddress| listeners.iter().position(|listener| listener.address.excludes(address));
    let Some(value) = section.value("address") else {
        let admin = Admin { access, token_file, tokens, ..Admin::default() };
        FileAccess::expect_unix(&section, &admin.address);
        let taken = in_the_way(&admin.address).and_then(|at| places.listeners.get(at));
        if let Some(at) = taken {
            top.whole().reader.fault(
                *at,
                format!(
                    "address: the admin API listens on {}, unless `admin: {{ address: .. }}` says where; write that, or \
                     another port here",
                    admin.address
                ),
            );
        }
        return Some(admin);
    };
    places.admin = Some(value.at());
    let address = listen_address(&value)?;
    FileAccess::expect_unix(&section, &address);
    if let ListenAddress::Tcp(tcp) = &address
        && !tcp.ip().is_loopback()
        && section.some("token_file").is_none()
    {
        let port = tcp.port();
        value.fault(format_args!(
            "{tcp} is open to others, which needs a token; write `token_file:` and a file with one, \
             or 127.0.0.1:{port}, [::1]:{port} or unix:/path"
        ));
    }
    if let Some(at) = in_the_way(&address) {
        let whose = match places.listeners.get(at) {
            Some(at) => format!("the listener on line {}", at.line),
            None => "the listener that there is without `listeners`".to_owned(),
        };
        say_taken(&value, &address, &listeners[at].address, &whose);
    }
    Some(Admin { address, access, token_file, tokens })
}

const ADMIN_KEYS: &[&str] = &["address", "mode", "group", "token_file"];

/// Where the admin API is, without a look at anything else; `None` where the address cannot be read.
pub(super) fn admin_place(root: Value) -> Option<AdminPlace> {
    let default = Admin::default().address;
    let Some(value) = root.entry("admin") else {
        return Some(AdminPlace { address: Some(default), token_file: None });
    };
    if value.is_null() {
        return Some(AdminPlace { address: None, token_file: None });
    }
    let section = value.section(ADMIN_KEYS);
    let address = match section.value("address") {
        Some(value) => listen_address(&value)?,
        None => default,
    };
    Some(AdminPlace { address: Some(address), token_file: token_file(&section) })
}

fn token_file(admin: &Section) -> Option<PathBuf> {
    admin
        .some("token_file")
        .and_then(|value| value.text("the path of a token file, or null"))
        .map(PathBuf::from)
}

/// What the token file says.
fn tokens(value: &Value) -> Option<Tokens> {
    // What is no path is said by `token_file`.
    let path = value.as_text()?;
    let text = match (value.reader.read)(Path::new(path)) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "not text".to_owned()),
        Err(error) => Err(format!("it cannot be read: {error}")),
    };
    let tokens = text.and_then(|text| Tokens::parse(&text));
    tokens.map_err(|message| value.fault(format_args!("{path}: {message}"))).ok()
}
