//! The keys of a pool.

use super::form::{Form, Text};
use super::{Key, key};

pub(super) const KEYS: &[Key] = &[
    key("nodes", Form::Sections(NODE), "At least one node, better two.").required(),
    key(
        "affinity",
        Form::Choices(AFFINITY),
        "Where a client belongs. The sources are asked in order, and the first that the request carries decides. The \
         empty list asks none.",
    )
    .or(r#"[{"cookie":{}}]"#),
    key(
        "balance",
        Form::Word(&["least_connections", "round_robin", "random_two", "client_ip"]),
        "Who gets a client that nothing above places.",
    )
    .or(r#""least_connections""#),
    key(
        "load_bound",
        Form::Maybe(&Form::Number(1, 1000)),
        "1.25, for instance: what is opened anew under header, query or client_ip passes a node over that has this many \
         times the average of the tunnels. Then one key may have several nodes, which no Socket.IO session notices. null: \
         the same key, the same node.",
    )
    .or("null"),
    key(
        "health",
        Form::Switch(HEALTH),
        "A probe of each node: one of auto, http, tcp and websocket. null asks nothing, and nodes are judged by real \
         traffic alone.",
    ),
    key(
        "passive",
        Form::Section(PASSIVE),
        "Real traffic judges, too: after so many failures in a row, dials or answers to different clients, a node is left \
         out for a while.",
    ),
    key(
        "retries",
        Form::Section(RETRIES),
        "A handshake that a node breaks off or answers with 502, 503 or 504 is sent to another node.",
    ),
    key(
        "slow_start",
        Form::Duration(true),
        "A node that comes back has no tunnels, and would get every new one under least_connections and random_two; its \
         share grows over this time instead. 0s: at once.",
    )
    .or(r#""30s""#),
    key("timeouts", Form::Section(TIMEOUTS), "How long things may take."),
    key("messages", Form::Section(MESSAGES), "What a message may be, and what is asked of quiet clients."),
    key("drain", Form::Section(DRAIN), "How tunnels are closed when their node is taken out."),
    key(
        "rebalance",
        Form::Switch(REBALANCE),
        "Moves the surplus of full nodes to those that came later. null moves nobody.",
    )
    .or("null"),
    key(
        "source_addresses",
        Form::Texts(Text("an IP address of this machine", "[0-9A-Fa-f:.]+")),
        "Outbound addresses, when one address runs out of ports: it has about 28,000 toward each node. Empty: whichever \
         the system takes.",
    )
    .or("[]"),
    key(
        "send_proxy_protocol",
        Form::Maybe(&Form::Word(&["v1", "v2"])),
        "Each connection to a node begins with a PROXY header that names the client.",
    )
    .or("null"),
    key("tls", Form::Switch(TLS), "TLS to the nodes.").or("null"),
];

const PART: Text = Text("a part, 0% to 100%", "(100|[0-9]{1,2})%");
const PATH: Text = Text("a path that begins with /", r"/[!-~]*");
const FILE: Text = Text("the path of a file", "");

const NODE: &[Key] = &[
    key(
        "id",
        Form::Text(Text("1 to 64 of A-Z a-z 0-9 _ . -", "[A-Za-z0-9_.-]{1,64}")),
        "What pins and metrics call it, so it stays when the address changes, and nobody moves.",
    )
    .required(),
    key(
        "address",
        Form::Text(Text("host and port, or unix:/path", r".+:[0-9]{1,5}|unix:.+")),
        "Where it is; a name is looked up at each dial.",
    )
    .required(),
    key("weight", Form::Whole(1, 1000), "Its share.").or("1"),
    key(
        "max_connections",
        Form::Maybe(&Form::Whole(1, u32::MAX as u64)),
        "The most tunnels it takes; over it, the next node is asked.",
    )
    .or("null"),
    key(
        "release",
        Form::Maybe(&Form::Text(Text("at most 64 visible characters", "[!-~]{1,64}"))),
        "What it runs, such as v7, unless it says so in X-Mainstay-Release on its health: clients that move go to the newest.",
    )
    .or("null"),
];

const AFFINITY: &[Key] = &[
    key(
        "cookie",
        Form::Section(COOKIE),
        "A cookie of the balancer's own, or one that the node sets and whose value is the id of the node.",
    ),
    key("engine_io", Form::Section(&[]), "Socket.IO without cookies: the session id carries the node."),
    key(
        "header",
        Form::Section(&[key(
            "name",
            Form::Text(Text("the name of a header", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")),
            "Which header, such as x-user-id.",
        )
        .required()]),
        "The same value of this header, the same node.",
    ),
    key(
        "query",
        Form::Section(&[key(
            "name",
            Form::Text(Text("the name of a query parameter", r"[!-~]+")),
            "Which parameter, such as user.",
        )
        .required()]),
        "The same for a query parameter.",
    ),
    key(
        "client_ip",
        Form::Section(&[
            key(
                "ipv4_prefix",
                Form::Whole(1, 32),
                "Bits of an IPv4 address that count; nginx's ip_hash has 24.",
            )
            .or("32"),
            key("ipv6_prefix", Form::Whole(1, 128), "Bits of an IPv6 address that count.").or("64"),
        ]),
        "The same client address, the same node.",
    ),
];

const COOKIE: &[Key] = &[
    key("name", Form::Text(Text("the name of a cookie", r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")), "Its name.")
        .or(r#""mainstay""#),
    key(
        "set_by",
        Form::Word(&["balancer", "node"]),
        "Of one that the node sets, the name is all there is to say.",
    )
    .or(r#""balancer""#),
    key(
        "secret_file",
        Form::Maybe(&Form::Text(FILE)),
        "Signs the cookie: lines of NAME:BASE64, 32 bytes at least; the first signs, all verify.",
    )
    .or("null"),
    key(
        "max_age",
        Form::Either("session", &Form::Duration(false)),
        "How long the browser keeps it: session, or whole seconds.",
    )
    .or(r#""session""#),
    key(
        "same_site",
        Form::Word(&["lax", "strict", "none"]),
        "none is for pages of another site, and wants `secure: always`.",
    )
    .or(r#""lax""#),
    key("secure", Form::Word(&["auto", "always", "never"]), "auto: Secure when the client came over https.")
        .or(r#""auto""#),
    key("partitioned", Form::Flag, "true: a jar per embedding site (CHIPS); wants Secure, too.").or("false"),
    key("path", Form::Text(Text("a path", r"/[^;,\s]*")), "Below which path the browser sends it.")
        .or(r#""/""#),
    key(
        "domain",
        Form::Maybe(&Form::Text(Text("a domain", r"[^;,\s]+"))),
        "null: only the host itself, no sub-domain.",
    )
    .or("null"),
];

const HEALTH: &[Key] = &[
    key(
        "auto",
        Form::Section(&[]),
        "A GET of /health that every server passes: any answer but 5xx is good; what is asked when no probe is named.",
    ),
    key(
        "http",
        Form::Section(&[
            key("path", Form::Text(PATH), "What is asked for.").or(r#""/health""#),
            key("status", Form::Whole(200, 599), "The status of a good answer.").or("200"),
        ]),
        "A GET that has to be answered with this status.",
    ),
    key("tcp", Form::Section(&[]), "A connection."),
    key(
        "websocket",
        Form::Section(&[key("path", Form::Text(PATH), "Where.").or(r#""/""#)]),
        "A real WebSocket handshake.",
    ),
    key("interval", Form::Duration(false), "From one probe to the next.").or(r#""2s""#),
    key("timeout", Form::Duration(false), "How long an answer may take.").or(r#""1s""#),
    key("rise", Form::Whole(1, 1000), "Good answers in a row that bring a node up.").or("2"),
    key("fall", Form::Whole(1, 1000), "Bad ones that bring it down.").or("3"),
];

const PASSIVE: &[Key] = &[
    key(
        "failures",
        Form::Whole(0, 1_000_000),
        "Failures in a row; of answers, each client counts once. 0 turns it off.",
    )
    .or("5"),
    key("eject", Form::Duration(false), "How long the node is left out, unless its probes are good before.")
        .or(r#""30s""#),
    key("max_ejected", Form::Text(PART), "The part of the nodes that is left out at most; one always stays.")
        .or(r#""50%""#),
];

const RETRIES: &[Key] = &[
    key("attempts", Form::Whole(1, 10), "The most nodes that are asked for one handshake; 1 is no retry.")
        .or("3"),
    key("of_handshakes", Form::Text(PART), "The retries are at most this part of the handshakes of late.")
        .or(r#""20%""#),
];

const TIMEOUTS: &[Key] = &[
    key(
        "connect",
        Form::Duration(false),
        "To a node; then the next one is tried, and the client does not notice.",
    )
    .or(r#""2s""#),
    key("handshake", Form::Duration(false), "From an Upgrade to the node's answer.").or(r#""10s""#),
    key(
        "idle",
        Form::Duration(false),
        "A tunnel that carries nothing for so long is closed; below 45s is asking for trouble.",
    )
    .or(r#""1h""#),
    key(
        "close",
        Form::Duration(false),
        "Once one side has sent a Close or ended its stream, the other has so long to do the same: 1s to 1h.",
    )
    .or(r#""10s""#),
    key("request", Form::Duration(false), "From a plain request to the head of its answer.").or(r#""60s""#),
];

const MESSAGES: &[Key] = &[
    key(
        "max_size",
        Form::Maybe(&Form::Size("1B to 1024GiB")),
        "1MiB, for instance: a longer message ends its tunnel with 1009.",
    )
    .or("null"),
    key(
        "ping",
        Form::Maybe(&Form::Duration(false)),
        "A client that has been quiet for so long is pinged, and closed when it does not answer.",
    )
    .or("null"),
];

const DRAIN: &[Key] = &[
    key("over", Form::Duration(true), "The closes are spread over this time.").or(r#""30s""#),
    key(
        "code",
        Form::Codes(&[1001, 1012, 1013], 3000, 4999),
        "The close code; after others than these some clients do not come back.",
    )
    .or("1012"),
    key("reason", Form::Text(Text("a text of at most 123 bytes", ".{1,123}")), "The close reason.")
        .or(r#""service restart""#),
];

const REBALANCE: &[Key] = &[
    key("over", Form::Duration(true), "The moves are spread over this time.").or(r#""10m""#),
    key("tolerance", Form::Number(1, 1000), "Times the average that a node may have and keep.").or("1.1"),
    key("quiet_first", Form::Flag, "Those that have been quiet for longest go first.").or("true"),
];

const TLS: &[Key] = &[
    key(
        "ca",
        Form::Text(FILE),
        "Whoever signed the nodes' certificates, as PEM; no authority is believed unsaid.",
    )
    .required(),
    key(
        "server_name",
        Form::Maybe(&Form::Text(Text("a host name", ""))),
        "The name that the node's certificate must have; null: that of its address.",
    )
    .or("null"),
    key(
        "cert",
        Form::Maybe(&Form::Text(FILE)),
        "The certificate to show to the nodes, as PEM; null shows none.",
    )
    .or("null"),
    key("key", Form::Maybe(&Form::Text(FILE)), "Its private key, as PEM.").or("null"),
];
