//! TLS until the end of the HTTP phase: rustls, and the way out of it.
//!
//! A connection is made by [`server`] or [`client`] and is a [`RustlsStream`] while HTTP is spoken on it. A tunnel goes on
//! without rustls: `RustlsStream::into_raw_parts` gives the socket and an [`extracted::ExtractedTls`]. In reading
//! order: `server` (certificates by host, tickets of `ticketer`), `client`, `record_reader` (makes extraction possible),
//! `secret_log` (the key log), `extract` (the steps), `extracted` (the result), `key_schedule` (the keys after the
//! handshake), `certificate_subject` (the name in a client certificate).
//!
//! Rules: the provider is always named, never the process's default; keys and secrets are wiped when dropped and
//! never printed; a connection has one owner.

/// The writes of a stream that looks at what is read only: they go to the stream in this field.
macro_rules! forward_write {
    ($stream:ident) => {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.get_mut().$stream).poll_write(cx, bytes)
        }

        fn poll_write_vectored(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            slices: &[std::io::IoSlice<'_>],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.get_mut().$stream).poll_write_vectored(cx, slices)
        }

        fn is_write_vectored(&self) -> bool {
            self.$stream.is_write_vectored()
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.get_mut().$stream).poll_flush(cx)
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.get_mut().$stream).poll_shutdown(cx)
        }
    };
}

pub(crate) mod certificate_subject;
pub mod client;
pub(crate) mod extract;
pub mod extracted;
pub mod key_schedule;
pub(crate) mod record_reader;
mod rustls_stream;
pub(crate) mod secret_log;
pub mod server;
pub(crate) mod ticketer;

use std::sync::{Arc, LazyLock};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;

pub use rustls_stream::RustlsStream;

/// The only protocol that is agreed on (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// The cryptography of every connection. The first caller is about to have keys, so from there on the process leaves no
/// core dumps.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        disable_core_dumps();
        Arc::new(default_provider())
    });
    Arc::clone(&PROVIDER)
}

/// Keeps keys out of core dumps: the kernel makes none of this process any more (PR_SET_DUMPABLE), and processes of
/// the same user cannot look into its memory. RLIMIT_CORE would not do: the kernel ignores it when dumps go to a
/// program (core(5)), which is what systemd-coredump and apport are.
pub(super) fn disable_core_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps cannot be disabled, they may contain TLS keys");
    }
}
