//! TLS up to the end of the handshake phase: rustls, and the way out of it.
//!
//! A connection is made by [`server`] or [`client`], and is a [`Secured`] stream while HTTP is spoken on it. A tunnel
//! goes on without rustls: [`Secured::leave`] gives the socket and a [`extracted::Departed`]. In reading order:
//! `server` (certificates by host, tickets of `ticket`), `client`, `gate` (what makes leaving possible), `secrets`
//! (the key log), `leave` (the steps), `departed` (what comes out), `schedule` (the keys after the handshake),
//! `subject` (a client certificate's name).
//!
//! Rules: the provider is always named, never the process's default; keys and secrets are wiped when dropped and
//! never printed; a connection has one owner.

pub mod client;
pub mod extracted;
pub mod record_reader;
pub mod extract;
pub mod key_schedule;
pub mod secret_log;
pub mod server;
pub mod certificate_subject;
pub mod ticketer;

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use zeroize::Zeroize;

use super::stream::Stream;
use extract::ExtractError;
use extracted::ExtractedTls;
use record_reader::RecordReader;
use secret_log::TrafficSecretLog;

/// The only protocol that is agreed on (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// The cryptography of every connection. Whoever asks for it first is about to have keys, so from there on the process
/// leaves no core dumps.
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
        tracing::warn!(%error, "core dumps cannot be forbidden, they would hold TLS keys");
    }
}

/// Wipes what functions that have returned left on this thread's stack: rustls moves keys about by value. It takes
/// some microseconds, once for each connection.
#[inline(never)]
fn wipe_stack() {
    let mut room = [0_u8; 64 * 1024];
    // Not optimised away, as assignments would be.
    room.zeroize();
    std::hint::black_box(&room);
}

/// A TLS connection in rustls' hands, in either role.
pub struct RustlsStream {
    stream: TlsStream<RecordReader<Stream>>,
    /// The key log that it was made with.
    secrets: Arc<TrafficSecretLog>,
}

impl RustlsStream {
    fn new(stream: TlsStream<RecordReader<Stream>>, secrets: Arc<TrafficSecretLog>) -> Self {
        Self { stream, secrets }
    }

    /// The stream below.
    pub fn inner(&self) -> &Stream {
        self.stream.get_ref().0.inner()
    }

    /// The subject of the peer's certificate (RFC 4514), if it had to show one.
    pub fn peer_subject(&self) -> Option<String> {
        let certificates = self.stream.get_ref().1.peer_certificates()?;
        certificates.first().and_then(|certificate| certificate_subject::subject_of(certificate))
    }

    /// The stream below, and what it takes to go on without rustls.
    ///
    /// # Errors
    ///
    /// See [`LeaveFault`]; the connection is closed.
    pub fn into_raw_parts(self) -> Result<(Stream, ExtractedTls), ExtractError> {
        let left = extract::extract(self.stream, &self.secrets);
        wipe_stack();
        left
    }
}

impl fmt::Debug for RustlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secured").field(self.inner()).finish()
    }
}

impl AsyncRead for RustlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl AsyncWrite for RustlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
