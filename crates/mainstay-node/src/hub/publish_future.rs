//! Whether an operation reached the other nodes, as a future.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use socketio_redis::adapter::{Offset, SendError};

/// Whether what was done here is on its way to the other nodes. May be dropped: nothing is taken back by that.
pub struct PublishFuture(PublishState);

impl PublishFuture {
    /// Nothing was to be sent to the other nodes.
    pub(super) fn not_needed() -> Self {
        Self(PublishState::Known(Ok(None)))
    }

    /// Its result will come here.
    pub(super) fn waiting(result: oneshot::Receiver<Result<Option<Offset>, SendError>>) -> Self {
        Self(PublishState::Waiting(result))
    }
}

enum PublishState {
    Known(Result<Option<Offset>, SendError>),
    Waiting(oneshot::Receiver<Result<Option<Offset>, SendError>>),
}

impl Future for PublishFuture {
    type Output = Result<Option<Offset>, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PublishState::Known(result) => Poll::Ready(result.clone()),
            // The sender is dropped unheard only when the runtime ends.
            PublishState::Waiting(waiting) => {
                Pin::new(waiting).poll(context).map(|told| told.unwrap_or(Err(SendError::Unreachable)))
            }
        }
    }
}
