//! What is said of certificates: of their time, and of a change.

use std::fs;

use mainstay::config::{Config, diff, resolve, resolve_at};

#[test]
fn a_certificate_that_is_taken_out_is_said_to_be_removed_and_a_new_one_to_be_added() {
    const NODES: &str = "nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }]";
    let papers =
        |name: &str| format!("cert: tests/config/papers/{name}.pem, key: tests/config/papers/site.key");
    let config = |listener: &str, pool: &str| {
        let text = format!(
            "listeners: [{{ address: \"127.0.0.1:0\", tls: {{ certificates: [{listener}] }} }}]\n\
             pools: {{ p: {{ {NODES}, tls: {{ ca: tests/config/papers/ca.pem, server_name: x{pool} }} }} }}\n"
        );
        resolve("t.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path))
            .unwrap_or_else(|faults| panic!("{faults}"))
    };
    let (site, other) = (format!("{{ {} }}", papers("site")), format!("{{ {} }}", papers("early")));
    let said =
        |old: &Config, new: &Config| diff(old, new).iter().map(ToString::to_string).collect::<Vec<_>>();
    let (one, two) =
        (config(&site, ""), config(&format!("{site}, {other}"), &format!(", {}", papers("site"))));
    let early = "listener 127.0.0.1:0: certificate tests/config/papers/early.pem";
    let shown = "pool p: certificate shown to nodes";
    assert_eq!(said(&two, &one), [format!("{early} removed"), format!("{shown} removed")]);
    let added = said(&one, &two);
    assert!(added[0].starts_with(&format!("{early} (until ")) && added[0].ends_with(" added"), "{added:?}");
    assert_eq!(added[1..], [format!("{shown} added")]);
    let turned = said(&two, &config(&format!("{other}, {site}"), &format!(", {}", papers("site"))));
    assert!(
        matches!(&turned[..], [order] if order.contains("the order of tls.certificates is [")),
        "{turned:?}"
    );
}

#[test]
fn a_certificate_is_asked_for_its_time_and_warned_of_two_weeks_before_its_end() {
    const DAY: i64 = 86_400;
    // 2120-01-01 and 2020-01-01, between which the certificate is valid.
    let (end, begin) = (4_733_510_400, 1_577_836_800);
    let text = "listeners: [{ address: \"127.0.0.1:0\", tls: { certificates: [\
        { cert: tests/config/papers/site.pem, key: tests/config/papers/site.key }] } }]\n\
        pools: { a: { nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }] } }";
    let said = |now| match resolve_at("t.yaml", now, text.as_bytes(), &|_| None, &|path| fs::read(path)) {
        Ok(config) => config.warnings.iter().map(|warning| warning.message.clone()).collect::<Vec<_>>(),
        Err(faults) => faults.list().iter().map(|fault| fault.message.clone()).collect(),
    };
    assert_eq!([said(begin), said(end - 14 * DAY)], [[""; 0], [""; 0]]);
    let path = "cert: tests/config/papers/site.pem: it";
    assert_eq!(said(end - 14 * DAY + 1), [format!("{path} expires on 2120-01-01; renew it")]);
    assert_eq!(said(end + 1), [format!("{path} expired on 2120-01-01; renew it")]);
    let early = format!("{path} is not valid before 2020-01-01; look at the clock of this machine");
    assert_eq!(said(begin - 1), [early]);
}
