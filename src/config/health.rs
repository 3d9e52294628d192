//! How the health of nodes is found out: the sections `health` and `passive` of a pool.

use std::time::Duration;

use http::uri::PathAndQuery;
use mainstay_core::units::{SOME_TIME, show_duration};
use serde_json::{Map, Value as Json, json};

use super::entry::{self, Flat, Form, Keys, derived, read_section, section, shown};
use super::forms::{duration, number, parsed, percent, section};
use super::key::{Key, Shape, Text};
use super::reader::{Section, Value};

section! {
    /// How nodes are probed.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct HealthCheck {
        /// What is asked.
        probe: Probe = probe();
        /// From one probe to the next.
        interval: Duration = duration(SOME_TIME).or("2s");
        /// How long an answer may take.
        timeout: Duration = duration(SOME_TIME).or("1s");
        /// Good answers in a row that bring a node up.
        rise: u32 = number(1..=1000).or(2);
        /// Bad ones that bring it down.
        fall: u32 = number(1..=1000).or(3);
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        entry::default()
    }
}

section! {
    /// How real traffic judges nodes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PassiveHealthCheck {
        /// Failures in a row; of answers, each client counts once. 0 turns it off.
        failures: u32 = number(0..=1_000_000).or(5);
        /// How long the node is left out, unless its probes are good before.
        eject: Duration = duration(SOME_TIME).or("30s");
        /// The part of the nodes that is left out at most; one always stays.
        max_ejected: u8 = percent().or("50%");
    }
}

/// What a probe asks of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of `/health`, whatever the node makes of it: any answer is good but one of 5xx, and so is a connection as
    /// long as the node has not answered any. A server that knows nothing of the balancer passes it.
    Auto,
    /// A GET.
    Http {
        /// Its path, with query if any.
        path: String,
        /// The status of a good answer, 200 to 599.
        status: u16,
    },
    /// A connection.
    Tcp,
    /// A WebSocket handshake.
    WebSocket {
        /// Its path, with query if any.
        path: String,
    },
    /// Nothing (`health: null`): a node is up until real traffic fails on it.
    Off,
}

section! {
    /// What `http` has.
    #[derive(PartialEq)]
    struct HttpProbe {
        /// What is asked for.
        path: String = path().or("/health");
        /// The status of a good answer.
        status: u16 = number(200..=599).or(200);
    }
}

section! {
    /// What `websocket` has.
    #[derive(PartialEq)]
    struct WebSocketProbe {
        /// Where.
        path: String = path().or("/");
    }
}

/// The key `health` of a pool; null turns it off.
pub(super) fn health() -> Form<HealthCheck> {
    let form = section().checked(warn_of_long_probes);
    let show = |health: &HealthCheck| match health.probe {
        Probe::Off => Json::Null,
        _ => shown(health),
    };
    Form { shape: Shape::Maybe(Box::new(form.shape)), show: Box::new(show), ..form }
}

fn warn_of_long_probes(value: &Value, health: &HealthCheck) {
    if health.probe == Probe::Off || health.timeout <= health.interval {
        return;
    }
    let Some(value) = value.entry("timeout").or(value.entry("interval")) else { return };
    let (interval, timeout) = (show_duration(&health.interval), show_duration(&health.timeout));
    value.warn(format_args!(
        "a probe may take {timeout}, which is above the interval of {interval}: a node that hangs is asked every \
         {timeout} only; write a timeout of {interval} or less, or a longer interval"
    ));
}

/// The probes of which the section names one.
fn probe() -> Flat<Probe> {
    derived(|health| Some(read_probe(health)))
        .with_keys(probes, |probe, into| into.extend(show_probe(probe)))
        .compared_by(|old, new, to| {
            if old != new {
                to.set(probe_text(new), probe_text(old));
            }
        })
}

fn probes() -> Vec<Key> {
    vec![
        Key::choice(
            "auto",
            Vec::new,
            "A GET of /health that every server passes: any answer but 5xx is good; what is asked when no probe is named.",
        ),
        Key::choice("http", HttpProbe::keys, "A GET that has to be answered with this status."),
        Key::choice("tcp", Vec::new, "A connection."),
        Key::choice("websocket", WebSocketProbe::keys, "A real WebSocket handshake."),
    ]
}

/// The one probe that the section names, or [`Probe::Auto`] when it names none.
fn read_probe(health: &Section) -> Probe {
    if health.whole().is_null() {
        return Probe::Off;
    }
    let mut named = probes().into_iter().filter_map(|probe| Some((probe.name, health.value(probe.name)?)));
    let Some((kind, value)) = named.next() else { return Probe::Auto };
    for (other, value) in named {
        value.fault(format_args!("`{kind}` is the probe already; keep one of `{kind}` and `{other}`"));
    }
    let probe = match kind {
        "http" => read_section(&value).map(|HttpProbe { path, status }| Probe::Http { path, status }),
        "websocket" => read_section(&value).map(|WebSocketProbe { path }| Probe::WebSocket { path }),
        kind => {
            value.section(Vec::new());
            (kind == "tcp").then_some(Probe::Tcp)
        }
    };
    probe.unwrap_or(Probe::Auto)
}

fn show_probe(probe: &Probe) -> Map<String, Json> {
    let (kind, asked) = match probe {
        Probe::Auto => ("auto", json!({})),
        Probe::Http { path, status } => ("http", json!({ "path": path, "status": status })),
        Probe::Tcp => ("tcp", json!({})),
        Probe::WebSocket { path } => ("websocket", json!({ "path": path })),
        Probe::Off => return Map::new(),
    };
    Map::from_iter([(kind.to_owned(), asked)])
}

fn probe_text(probe: &Probe) -> String {
    match probe {
        Probe::Auto => "auto".into(),
        Probe::Http { path, status } => format!("http {path} with status {status}"),
        Probe::Tcp => "tcp".into(),
        Probe::WebSocket { path } => format!("websocket {path}"),
        Probe::Off => "none".into(),
    }
}

fn path() -> Form<String> {
    let expected = "a path that begins with `/`, of visible characters without any of \" # < >";
    parsed(Text("a path that begins with /", r"/[!-~]*"), expected, |text| {
        // The last word is the HTTP library's: what it does not take, the probe could not send.
        let visible = text.bytes().all(|b| b.is_ascii_graphic() && !b"\"#<>".contains(&b));
        let sendable = visible && text.parse::<PathAndQuery>().is_ok();
        (text.starts_with('/') && sendable).then(|| text.to_owned())
    })
}
