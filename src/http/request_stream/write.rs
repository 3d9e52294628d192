//! The write side of a request stream: bytes pass unchanged, and the timeouts count them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::{ReadState, RequestStream, TimeoutKind};

impl<S> RequestStream<S> {
    /// A client that reads is not silent: its response may still be on the way when the request counts as answered.
    fn extend_keep_alive(&mut self, written: &Poll<io::Result<usize>>) {
        if written.is_ready()
            && let Some((TimeoutKind::NextByte, sleep)) = &mut self.timer
        {
            sleep.as_mut().reset(Instant::now() + self.limits.keep_alive);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = Pin::new(&mut guard.stream).poll_write(cx, bytes);
        guard.extend_keep_alive(&written);
        guard.write_timeout.check_write(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = Pin::new(&mut guard.stream).poll_write_vectored(cx, slices);
        guard.extend_keep_alive(&written);
        guard.write_timeout.check_write(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        let flushed = Pin::new(&mut guard.stream).poll_flush(cx);
        ready!(guard.write_timeout.check_write(flushed.map_ok(|()| 0), cx))?;
        // Hyper flushes the stream only after it has written all that it had.
        let is_last = matches!(guard.read_state, ReadState::Sealed | ReadState::Upgrading);
        if is_last && !guard.is_flushed && guard.tracker.poll_answered(cx).is_ready() {
            guard.is_flushed = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
