//! What differs in how TLS is spoken, to clients and to nodes. Of keys and secrets it is said that they are others.

use std::path::PathBuf;

use rustls_pki_types::ServerName;

use super::{Section, What, listed, none};
use crate::config::{Authorities, Identity, ListenerTls, PoolTls};

fn on_or_off(is_on: &bool) -> String {
    if *is_on { "on" } else { "off" }.into()
}

pub(super) fn compare_listener_tls(
    old: Option<&ListenerTls>,
    new: Option<&ListenerTls>,
    section: &mut Section,
) {
    let (Some(old), Some(new)) = (old, new) else {
        return section.set("tls", &old.is_some(), &new.is_some(), on_or_off);
    };
    let ListenerTls { certificates, client_ca, min_version, ticket_secret_file, tickets } = old;
    compare_certificates(certificates, &new.certificates, section);
    compare_authorities("tls.client_ca", client_ca.as_ref(), new.client_ca.as_ref(), section);
    section.set("tls.min_version", min_version, &new.min_version, |version| version.as_str().into());
    let path = |path: &Option<PathBuf>| path.as_ref().map_or(none(), |path| path.display().to_string());
    section.set("tls.ticket_secret_file", ticket_secret_file, &new.ticket_secret_file, path);
    section.part("ticket secrets", tickets.as_ref(), new.tickets.as_ref());
}

/// By their files: a certificate of another file is added, one of the same file is replaced.
fn compare_certificates(old: &[Identity], new: &[Identity], section: &mut Section) {
    let is_file_of = |list: &[Identity], one: &Identity| list.iter().any(|other| other.cert == one.cert);
    for one in old.iter().filter(|one| !is_file_of(new, one)) {
        section.push(What::PartRemoved(format!("certificate {}", one.cert.display())));
    }
    for one in new.iter().filter(|one| !old.contains(one)) {
        let what = format!("certificate {} (until {})", one.cert.display(), one.expires);
        section.push(if is_file_of(old, one) { What::Replaced(what) } else { What::PartAdded(what) });
    }
    let files = |list: &[Identity], other: &[Identity]| {
        let both = list.iter().filter(|one| is_file_of(other, one));
        listed(&both.map(|one| one.cert.display().to_string()).collect::<Vec<_>>())
    };
    // The first is for clients that ask for no name.
    section.set("the order of tls.certificates", &files(old, new), &files(new, old), String::clone);
}

pub(super) fn compare_pool_tls(old: Option<&PoolTls>, new: Option<&PoolTls>, section: &mut Section) {
    let (Some(old), Some(new)) = (old, new) else {
        return section.set("tls", &old.is_some(), &new.is_some(), on_or_off);
    };
    let PoolTls { ca, server_name, identity } = old;
    compare_authorities("tls.ca", Some(ca), Some(&new.ca), section);
    let name =
        |name: &Option<ServerName<'_>>| name.as_ref().map_or(none(), |name| name.to_str().into_owned());
    section.set("tls.server_name", server_name, &new.server_name, name);
    section.part("certificate shown to nodes", identity.as_ref(), new.identity.as_ref());
}

fn compare_authorities(
    key: &'static str,
    old: Option<&Authorities>,
    new: Option<&Authorities>,
    section: &mut Section,
) {
    let file = |ca: &Option<&Authorities>| ca.map_or(none(), |ca| ca.file.display().to_string());
    if old.is_some() && file(&old) == file(&new) && old != new {
        section.push(What::Replaced(format!("authorities of {}", file(&new))));
    }
    section.set(key, &file(&old), &file(&new), String::clone);
}
