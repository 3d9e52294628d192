//! The proxies before this balancer: the section `trusted_proxies`, and what it means for other keys.

use std::net::IpAddr;

use ipnet::IpNet;

use super::entry::Form;
use super::forms::parsed;
use super::key::Text;
use super::reader::Value;

/// `10.0.0.0/8`, or one address.
pub(super) fn network() -> Form<IpNet> {
    const TEXT: Text = Text("a network (10.0.0.0/8) or an address", "[0-9A-Fa-f:.]+(/[0-9]{1,3})?");
    let parse = |text: &str| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed(TEXT, "a network, such as 10.0.0.0/8, or one address", parse).checked(|value, net| {
        if *net != net.trunc() {
            value.fault(format_args!("{net} has bits beyond its prefix; write {}", net.trunc()));
        }
    })
}

/// Whether the config of `value` trusts anybody.
pub(super) fn are_there(value: &Value) -> bool {
    let network = network();
    let list = value.top("trusted_proxies").map(|list| list.list()).unwrap_or_default();
    list.iter().any(|item| item.silently(&network.read).is_some())
}

/// Says that the client's address decides here, where nobody has said whether it is the client's.
pub(super) fn warn_where_unsaid(value: &Value) {
    if value.top("trusted_proxies").is_none_or(|list| list.is_null()) {
        value.warn(
            "behind a proxy every client has the proxy's address and goes to one node; name the proxy in \
             `trusted_proxies`, or write `trusted_proxies: []` where clients come in directly",
        );
    }
}
