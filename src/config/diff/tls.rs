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
    for now in new.certificates.iter().filter(|now| !certificates.contains(now)) {
        section.push(What::Replaced(format!("certificate {} (until {})", now.cert.display(), now.expires)));
    }
    let files = |list: &Vec<Identity>| {
        listed(&list.iter().map(|one| one.cert.display().to_string()).collect::<Vec<_>>())
    };
    section.set("tls.certificates", &files(certificates), &files(&new.certificates), String::clone);
    compare_authorities("tls.client_ca", client_ca.as_ref(), new.client_ca.as_ref(), section);
    section.set("tls.min_version", min_version, &new.min_version, |version| version.as_str().into());
    let path = |path: &Option<PathBuf>| path.as_ref().map_or(none(), |path| path.display().to_string());
    section.set("tls.ticket_secret_file", ticket_secret_file, &new.ticket_secret_file, path);
    if *tickets != new.tickets {
        section.push(What::Replaced("ticket secrets".into()));
    }
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
    if *identity != new.identity {
        section.push(What::Replaced("certificate shown to nodes".into()));
    }
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
