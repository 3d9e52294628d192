//! The keys of the config, but for those of a pool.

use super::form::{Form, Text};
use super::{Key, key, pool};

pub(super) const KEYS: &[Key] = &[
    key("listeners", Form::Sections(LISTENER), "Where clients come in.").or(r#"[{"address":"0.0.0.0:8080"}]"#),
    key(
        "admin",
        Form::Switch(ADMIN),
        "Metrics, health and API. A loopback address and a Unix socket are for this machine only; any other \
         address needs a token. null turns it off.",
    ),
    key(
        "trusted_proxies",
        Form::Texts(Text("a network (10.0.0.0/8) or an address", "[0-9A-Fa-f:.]+(/[0-9]{1,3})?")),
        "The proxies before this balancer. Only their X-Forwarded-For and PROXY header is believed; anybody else could \
         write what he likes into it. Behind a proxy that is not named here, every client has the address of the proxy.",
    )
    .or("[]"),
    key("limits", Form::Section(LIMITS), "What clients may take."),
    key("access_log", Form::Section(ACCESS_LOG), "One line when a session opens and one when it closes."),
    key(
        "shutdown",
        Form::Section(&[key(
            "drain",
            Form::Duration(true),
            "The tunnels are closed with 1001 one after the other over this time, so that their clients do not all come \
             back in the same second. The process has ended by then.",
        )
        .or(r#""30s""#)]),
        "The orderly end, on SIGTERM.",
    ),
    key("pools", Form::Named(pool::KEYS), "Sets of nodes by name; metrics and routes use the name.").required(),
    key(
        "routes",
        Form::Sections(ROUTE),
        "What goes where; the first match wins, narrow ones first. Without any routes, all goes to the only pool.",
    ),
];

const LISTEN: Text = Text(
    r#"an address to listen on, such as "0.0.0.0:8080", "[::]:8080" or "unix:/run/mainstay.sock""#,
    r"[0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|unix:.+",
);

const MODE: Text = Text("permission bits in octal, such as \"0660\"", "(0o)?0?[0-7]{3}");

const FILE: Text = Text("the path of a file", "");

const LISTENER: &[Key] = &[
    key(
        "address",
        Form::Text(LISTEN),
        "IP address and port, or unix: and a path; port 0 lets the system choose one.",
    )
    .required(),
    key(
        "mode",
        Form::Maybe(&Form::Text(MODE)),
        "Who may connect to a Unix socket, as permission bits. null: what the umask leaves, with a group 0660.",
    )
    .or("null"),
    key(
        "group",
        Form::Maybe(&Form::Text(Text("the name of a group", "[A-Za-z0-9_.$-]{1,64}"))),
        "The group that owns the file of a Unix socket; the balancer's user must be in it. null: the user's own.",
    )
    .or("null"),
    key(
        "proxy_protocol",
        Form::Flag,
        "Expect a PROXY header, v1 or v2, from trusted_proxies before anything else.",
    )
    .or("false"),
    key("tls", Form::Switch(TLS), "TLS for the clients of this listener.").or("null"),
];

const TLS: &[Key] = &[
    key(
        "certificates",
        Form::Sections(&[
            key("cert", Form::Text(FILE), "The certificate and those of its issuers, as PEM.").required(),
            key("key", Form::Text(FILE), "Its private key, as PEM.").required(),
        ]),
        "Chosen by the name that the client asks for (SNI); the first when none fits.",
    )
    .required(),
    key(
        "client_ca",
        Form::Maybe(&Form::Text(FILE)),
        "Whoever signed the certificates that clients must show, as PEM; null asks for none.",
    )
    .or("null"),
    key("min_version", Form::Word(&["1.2", "1.3"]), "The oldest TLS that is spoken.").or(r#""1.2""#),
    key(
        "ticket_secret_file",
        Form::Maybe(&Form::Text(FILE)),
        "Lines of NAME:BASE64; sessions resume on every replica that has the same file. null: on this process only.",
    )
    .or("null"),
];

const ADMIN: &[Key] = &[
    key("address", Form::Text(LISTEN), "Where it listens.").or(r#""127.0.0.1:9090""#),
    key(
        "mode",
        Form::Maybe(&Form::Text(MODE)),
        "Who may connect to a Unix socket, as permission bits. null: 0600, with a group 0660.",
    )
    .or("null"),
    key(
        "group",
        Form::Maybe(&Form::Text(Text("the name of a group", "[A-Za-z0-9_.$-]{1,64}"))),
        "The group that owns the file of a Unix socket; the balancer's user must be in it. null: the user's own.",
    )
    .or("null"),
    key(
        "token_file",
        Form::Maybe(&Form::Text(FILE)),
        "One token a line; who asks must show one of them. Needed when the address is open to others.",
    )
    .or("null"),
];

const LIMITS: &[Key] = &[
    key(
        "connections",
        Form::Either("auto", &Form::Whole(1, 10_000_000)),
        "Client connections at a time, tunnels among them; auto is what the file limit allows.",
    )
    .or(r#""auto""#),
    key(
        "connections_per_client",
        Form::Whole(0, 1_000_000),
        "The same for one client (IPv4 address, IPv6 /64); 0 is no limit.",
    )
    .or("0"),
    key(
        "handshakes_per_second",
        Form::Whole(0, 1_000_000),
        "Upgrade requests that are begun in a second; a short queue, then 503 with Retry-After. 0 is no limit.",
    )
    .or("0"),
    key(
        "request_head",
        Form::Size("8KiB to 1MiB"),
        "The request line and all headers; more is refused.",
    )
    .or(r#""16KiB""#),
    key(
        "head_time",
        Form::Duration(false),
        "A whole request head, or a whole TLS hello, must be here by then, however slowly its bytes come.",
    )
    .or(r#""10s""#),
    key("keep_alive", Form::Duration(false), "A kept-alive client connection may be silent for so long.")
        .or(r#""60s""#),
];

const ACCESS_LOG: &[Key] = &[
    key("format", Form::Word(&["json", "text", "off"]), "How a line looks; off writes none.").or(r#""json""#),
    key(
        "path",
        Form::Text(Text("stdout, or the path of a file", "")),
        "Where the lines go; a file is opened anew on SIGUSR1.",
    )
    .or(r#""stdout""#),
];

const ROUTE: &[Key] = &[
    key(
        "host",
        Form::Maybe(&Form::Text(Text("a host name, or *.example.com for all below one", r"(\*\.)?[^*/:\s]+"))),
        "The host that the client asks for; without it, any.",
    )
    .or("null"),
    key(
        "path",
        Form::Maybe(&Form::Text(Text("a path", r"/[^?#\s]*"))),
        "What the path begins with; without it, any.",
    )
    .or("null"),
    key(
        "origins",
        Form::Texts(Text("an origin (https://example.com), or \"null\" in quotes", "")),
        "Pages of these origins may open WebSockets here, pages of others get 403. The empty list asks nobody.",
    )
    .or("[]"),
    key("pool", Form::Text(Text("the name of a pool", "[A-Za-z0-9_.-]{1,64}")), "Where it goes.").required(),
];
