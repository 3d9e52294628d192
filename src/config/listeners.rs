//! Where clients come in, and where the admin API is: the sections `listeners` and `admin`.

use std::path::{Path, PathBuf};

use mainstay_core::bearer_tokens::Tokens;

use super::address::ListenAddress;
use super::change::{Comparison, Subject, What};
use super::entry::{self, Form, Keys, derived, flat, section};
use super::fault::Position;
use super::forms::{file, flag, parsed, section, sections, typed};
use super::key::{Shape, Text};
use super::proxies;
use super::reader::{Section, Value};
use super::tls::ListenerTls;

section! {
    /// Where clients come in.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ListenerConfig {
        /// IP address and port, or unix: and a path; port 0 lets the system choose one.
        address: ListenAddress = listen_address().required("`address: \"0.0.0.0:8080\"`, for instance");
        /// Who may connect, where it is a Unix socket.
        access: FileAccess = flat();
        /// Expect a PROXY header, v1 or v2, from trusted_proxies before anything else.
        proxy_protocol: bool = flag().checked(expect_proxies).or(false);
        /// TLS for the clients of this listener.
        tls: Option<ListenerTls> = section().or_null();
    }
}

section! {
    /// Where metrics and health are served.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Admin {
        /// Where it listens.
        address: ListenAddress = listen_address().or("127.0.0.1:9090");
        /// Who may connect, where it is a Unix socket.
        access: FileAccess = flat().saying(
            "mode",
            "Who may connect to a Unix socket, as permission bits. null: 0600, with a group 0660.",
        );
        /// One token a line; who asks must show one of them. Needed when the address is open to others.
        token_file: Option<PathBuf> = file("the path of a token file, or null").or_null();
        /// Who does not show one of these is refused; `None` trusts everybody who can reach the address.
        tokens: Option<Tokens> = derived(|admin| Some(admin.some("token_file").and_then(|file| tokens(&file))))
            .compared_by(|old, new, to| to.part("tokens", old.as_ref(), new.as_ref()));
    }
}

section! {
    /// The permissions of a Unix socket's file, as the config says them.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct FileAccess {
        /// Who may connect to a Unix socket, as permission bits. null: what the umask leaves, with a group 0660.
        mode: Option<u32> = mode().or_null();
        /// The group that owns the file of a Unix socket; the balancer's user must be in it. null: the user's own.
        group: Option<String> = parsed(
            Text("the name of a group", "[A-Za-z0-9_.$-]{1,64}"),
            "the name of a group, such as www-data, or its number",
            |text| is_group(text).then(|| text.to_owned()),
        )
        .or_null();
    }
}

impl Default for FileAccess {
    fn default() -> Self {
        entry::default()
    }
}

/// With a group and no mode: the owner and the group connect, nobody else.
const GROUP_MODE: u32 = 0o660;

impl FileAccess {
    /// The permission bits, where the config decides them: a group that could not connect would be of no use.
    pub fn effective_mode(&self) -> Option<u32> {
        self.mode.or(self.group.as_ref().map(|_| GROUP_MODE))
    }
}

/// The permission bits, up to 0o777.
fn mode() -> Form<u32> {
    const TEXT: Text = Text("permission bits in octal, such as \"0660\"", "(0o)?0?[0-7]{3}");
    let parse = |text: &str| {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let mode = u32::from_str_radix(digits, 8).ok()?;
        (is_octal && mode <= 0o777).then_some(mode)
    };
    let read = move |value: &Value| value.parsed("the permission bits in octal, such as \"0660\"", parse);
    Form::new(Shape::Text(TEXT), read, |mode| format!("{mode:04o}").into())
}

fn is_group(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-$".contains(&b))
}

fn listen_address() -> Form<ListenAddress> {
    const TEXT: Text = Text(
        "an address to listen on, such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/run/mainstay.sock\"",
        r"[0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|unix:.+",
    );
    typed(TEXT, "an address to listen on, such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/path\"")
}

/// The key `listeners`.
pub(super) fn listeners() -> Form<Vec<ListenerConfig>> {
    sections("- address: \"0.0.0.0:8080\"")
        .checked(|value, _| check_listeners(value))
        .compared_by(|old, new, to| compare_listeners(old, new, to))
}

/// The key `admin`; null turns it off.
pub(super) fn admin() -> Form<Option<Admin>> {
    section::<Admin>().maybe().compared_by(|old, new, to| match (old, new) {
        (Some(old), Some(new)) => Admin::compare(old, new, to),
        (_, Some(new)) => to.push(What::Added(new.address.to_string())),
        (_, None) => to.push(What::Removed(String::new())),
    })
}

fn expect_proxies(value: &Value, is_on: &bool) {
    if *is_on && !proxies::are_there(value) {
        value.fault("nobody is trusted to send it, so every connection would be cut; name the proxies in `trusted_proxies`");
    }
}

fn check_listeners(list: &Value) {
    let mut others: Vec<(ListenAddress, usize)> = Vec::new();
    for item in list.list() {
        let Some((value, address)) = address_of(&item) else { continue };
        expect_unix(&item, &address);
        if let Some((other, line)) = others.iter().find(|(other, _)| other.excludes(&address)) {
            say_taken(&value, &address, other, &format!("the listener on line {line}"));
        }
        others.push((address, value.at().line));
    }
}

/// The address that a listener or the admin API says, if it is one.
fn address_of<'a>(section: &Value<'a>) -> Option<(Value<'a>, ListenAddress)> {
    let value = section.entry("address")?;
    Some((value, value.silently(&listen_address().read)?))
}

/// Says where there is no file that `mode` and `group` could be the access to.
fn expect_unix(section: &Value, address: &ListenAddress) {
    if matches!(address, ListenAddress::Unix(_)) {
        return;
    }
    for value in ["mode", "group"].into_iter().filter_map(|key| section.entry(key)) {
        if !value.is_null() {
            value.fault(format_args!(
                "{address} has no file; only a Unix socket (`address: unix:/path`) has a mode and a group"
            ));
        }
    }
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

/// Where clients come in by a config, each with its place if the file says it.
fn listen_addresses(root: &Value) -> Vec<(ListenAddress, Option<Position>)> {
    match root.entry("listeners") {
        Some(list) => {
            let said = list.list().into_iter().filter_map(|item| address_of(&item));
            said.map(|(value, address)| (address, Some(value.at()))).collect()
        }
        None => vec![(ListenAddress::Tcp(([0, 0, 0, 0], 8080).into()), None)],
    }
}

/// Says where the admin API cannot be, or not without a token.
pub(super) fn check_admin(root: &Value) {
    let section = root.entry("admin");
    if section.is_some_and(|section| section.is_null()) {
        return;
    }
    let value = section.and_then(|section| section.entry("address"));
    let address = match value {
        Some(value) => value.silently(&listen_address().read),
        None => Some(entry::default::<Admin>().address),
    };
    let Some(address) = address else { return };
    let has_token =
        section.and_then(|section| section.entry("token_file")).is_some_and(|file| !file.is_null());
    if let Some(section) = section {
        expect_unix(&section, &address);
    }
    if let (Some(value), ListenAddress::Tcp(tcp), false) = (value, &address, has_token)
        && !tcp.ip().is_loopback()
    {
        let port = tcp.port();
        value.fault(format_args!(
            "{tcp} is open to others, which needs a token; write `token_file:` and a file with one, \
             or 127.0.0.1:{port}, [::1]:{port} or unix:/path"
        ));
    }
    let others = listen_addresses(root);
    match (others.iter().find(|(other, _)| other.excludes(&address)), value) {
        (Some((other, at)), Some(value)) => {
            let whose = match at {
                Some(at) => format!("the listener on line {}", at.line),
                None => "the listener that there is without `listeners`".to_owned(),
            };
            say_taken(&value, &address, other, &whose);
        }
        (Some((_, Some(at))), None) => root.reader.fault(
            *at,
            format!(
                "address: the admin API listens on {address}, unless `admin: {{ address: .. }}` says where; write that, or \
                 another port here"
            ),
        ),
        _ => {}
    }
}

/// Where in the file the addresses stand that have to be bound. All places are alike: a config is no other one for
/// being written in another way.
#[derive(Debug, Clone, Default)]
pub struct AddressPositions {
    /// One for each of the listeners; none when the file does not name any.
    pub listeners: Vec<Position>,
    /// The admin address, when the file names it.
    pub admin: Option<Position>,
}

impl AddressPositions {
    pub(super) fn read(top: &Section) -> Self {
        let root = top.whole();
        let listeners = listen_addresses(&root).into_iter().filter_map(|(_, at)| at).collect();
        let admin = root.entry("admin").and_then(|admin| admin.entry("address"));
        Self { listeners, admin: admin.map(|address| address.at()) }
    }
}

impl PartialEq for AddressPositions {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Where the admin API of a config is, whatever else is wrong with the config; for the commands that speak to a
/// running balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminEndpoint {
    /// Where it listens; `None` when it is turned off.
    pub address: Option<ListenAddress>,
    /// The file with its tokens, as written.
    pub token_file: Option<PathBuf>,
}

/// Where the admin API is, without a look at anything else; `None` where the address cannot be read.
pub(super) fn admin_place(root: Value) -> Option<AdminEndpoint> {
    let default = entry::default::<Admin>().address;
    let Some(value) = root.entry("admin") else {
        return Some(AdminEndpoint { address: Some(default), token_file: None });
    };
    if value.is_null() {
        return Some(AdminEndpoint { address: None, token_file: None });
    }
    let section = value.section(entry::names(&Admin::keys()));
    let address = match section.value("address") {
        Some(value) => (listen_address().read)(&value)?,
        None => default,
    };
    let token_file =
        section.some("token_file").and_then(|value| value.text("the path of a token file, or null"));
    Some(AdminEndpoint { address: Some(address), token_file: token_file.map(PathBuf::from) })
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

/// The place in `old` of each of `new`: two alike (port 0) are told apart by their order.
pub(crate) fn same_listeners(old: &[ListenerConfig], new: &[ListenerConfig]) -> Vec<Option<usize>> {
    let mut taken = vec![false; old.len()];
    let place = |listener: &ListenerConfig| {
        let free = old.iter().enumerate().position(|(at, one)| !taken[at] && one.address == listener.address);
        if let Some(at) = free {
            taken[at] = true;
        }
        free
    };
    new.iter().map(place).collect()
}

fn compare_listeners(old: &[ListenerConfig], new: &[ListenerConfig], to: &mut Comparison) {
    let places = same_listeners(old, new);
    let subject = |listener: &ListenerConfig| Subject::Listener(listener.address.to_string());
    for (_, listener) in old.iter().enumerate().filter(|(at, _)| !places.contains(&Some(*at))) {
        to.about(subject(listener), |to| to.push(What::Removed(String::new())));
    }
    for (listener, place) in new.iter().zip(places) {
        to.about(subject(listener), |to| match place {
            Some(at) => ListenerConfig::compare(&old[at], listener, to),
            None => to.push(What::Added("listening".into())),
        });
    }
}
