//! A TLS stream while rustls has it: HTTP is spoken on it, until a tunnel takes the connection out of rustls.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use zeroize::Zeroize;

use super::certificate_subject;
use super::extract::{self, ExtractError};
use super::extracted::ExtractedTls;
use super::record_reader::RecordReader;
use super::secret_log::TrafficSecretLog;

/// A TLS stream of rustls, in either role.
pub struct RustlsStream<S> {
    stream: TlsStream<RecordReader<S>>,
    /// The key log that it was made with.
    secrets: Arc<TrafficSecretLog>,
}

impl<S> RustlsStream<S> {
    pub(super) fn new(stream: TlsStream<RecordReader<S>>, secrets: Arc<TrafficSecretLog>) -> Self {
        Self { stream, secrets }
    }

    /// The stream under TLS.
    pub(crate) fn inner(&self) -> &S {
        self.stream.get_ref().0.inner()
    }

    /// The subject of the peer's certificate (RFC 4514), if it had to show one.
    pub(crate) fn peer_subject(&self) -> Option<String> {
        let certificates = self.stream.get_ref().1.peer_certificates()?;
        certificates.first().and_then(|certificate| certificate_subject::subject_of(certificate))
    }

    /// The stream under TLS, and what a record layer needs to go on without rustls.
    ///
    /// # Errors
    ///
    /// See [`ExtractError`]; the connection is closed.
    pub(crate) fn into_raw_parts(self) -> Result<(S, ExtractedTls), ExtractError> {
        let extracted = extract::extract(self.stream, &self.secrets);
        wipe_stack();
        extracted
    }
}

impl<S: fmt::Debug> fmt::Debug for RustlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RustlsStream").field(self.inner()).finish()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for RustlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for RustlsStream<S> {
    forward_write!(stream);
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
