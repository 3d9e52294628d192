//! Messages on the socket between the two processes: JSON bodies, batches of tunnels, and time limits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::protocol::kind;
use crate::net::handover_socket::{HandoverError, HandoverFrame, HandoverSocket, MAX_DESCRIPTORS};
use crate::relay::{FrozenTunnel, ReceivedTunnel};

/// About the most bytes of a piece of a batch.
const PIECE: usize = 1 << 20;

/// Why the conversation with the other process fails.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error(transparent)]
    Link(#[from] HandoverError),
    /// The other process refuses, and says why.
    #[error("{0}")]
    Refused(String),
    /// It has closed the socket.
    #[error("the other process has ended")]
    Ended,
    /// It did not answer in time.
    #[error("the other process has not answered within {0:?}")]
    TimedOut(Duration),
    /// It sent a frame of an unknown kind, or of another one than it was asked for.
    #[error("the other process says something that this version does not know ({0})")]
    UnexpectedFrame(u8),
    /// It sent a frame that does not fit to what came before.
    #[error("the other process does not keep to the protocol")]
    OutOfOrder,
    /// A body cannot be decoded.
    #[error("the other process is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A piece of a batch is cut or has too few sockets.
    #[error("a piece of a batch is broken")]
    BrokenPiece,
}

impl ChannelError {
    /// The other process has closed the socket.
    pub(crate) fn is_end(&self) -> bool {
        let is_broken = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        match self {
            Self::Ended => true,
            Self::Link(HandoverError::Io(error)) => is_broken(error),
            _ => false,
        }
    }
}

/// Sends a message.
pub(super) async fn send(
    link: &mut HandoverSocket,
    kind: u8,
    message: &impl Serialize,
) -> Result<(), ChannelError> {
    Ok(link.send(kind, &serde_json::to_vec(message)?, &[]).await?)
}

/// Waits for the next frame.
pub(super) async fn receive(link: &mut HandoverSocket) -> Result<HandoverFrame, ChannelError> {
    link.receive().await?.ok_or(ChannelError::Ended)
}

/// Waits for a frame of this kind.
pub(super) async fn expect(
    link: &mut HandoverSocket,
    kind: u8,
    within: Duration,
) -> Result<HandoverFrame, ChannelError> {
    let frame = timeout(within, receive(link)).await.map_err(|_| ChannelError::TimedOut(within))??;
    match frame.kind {
        received if received == kind => Ok(frame),
        kind::FAULT => Err(refusal(&frame)),
        other => Err(ChannelError::UnexpectedFrame(other)),
    }
}

/// What a refusal says.
pub(super) fn refusal(frame: &HandoverFrame) -> ChannelError {
    ChannelError::Refused(String::from_utf8_lossy(&frame.body).into_owned())
}

/// Decodes a message.
pub(super) fn decode<T: DeserializeOwned>(frame: &HandoverFrame) -> Result<T, ChannelError> {
    Ok(serde_json::from_slice(&frame.body)?)
}

/// Sends a batch: its pieces, and then that it is complete.
pub(super) async fn send_batch<'a>(
    link: &mut HandoverSocket,
    parcels: impl Iterator<Item = &'a FrozenTunnel>,
) -> Result<(), ChannelError> {
    let mut count = 0_u64;
    let mut piece = Piece::default();
    for parcel in parcels {
        count += 1;
        if piece.is_full(parcel) {
            piece.send(link).await?;
        }
        piece.add(parcel);
    }
    piece.send(link).await?;
    Ok(link.send(kind::WHOLE, &count.to_be_bytes(), &[]).await?)
}

/// The parcels of one frame: length and bytes of each. It holds keys, and is wiped.
#[derive(Default)]
struct Piece<'a> {
    body: Zeroizing<Vec<u8>>,
    parcels: Vec<&'a FrozenTunnel>,
}

impl<'a> Piece<'a> {
    fn is_full(&self, parcel: &FrozenTunnel) -> bool {
        let too_many = 2 * (self.parcels.len() + 1) > MAX_DESCRIPTORS;
        too_many || (!self.body.is_empty() && self.body.len() + parcel.state().len() > PIECE)
    }

    fn add(&mut self, parcel: &'a FrozenTunnel) {
        // At most `parcel::MOST`, some MiB.
        let length = parcel.state().len() as u32;
        let needed = self.body.len() + 4 + parcel.state().len();
        if self.body.capacity() < needed {
            // A vector that grows would leave a copy of the keys behind.
            let mut body = Zeroizing::new(Vec::with_capacity(needed + PIECE / 8));
            body.extend_from_slice(&self.body);
            self.body = body;
        }
        self.body.extend_from_slice(&length.to_be_bytes());
        self.body.extend_from_slice(parcel.state());
        self.parcels.push(parcel);
    }

    async fn send(&mut self, link: &mut HandoverSocket) -> Result<(), ChannelError> {
        if self.parcels.is_empty() {
            return Ok(());
        }
        let sockets: Vec<_> = self.parcels.iter().flat_map(|parcel| parcel.sockets()).collect();
        link.send(kind::PIECE, &self.body, &sockets).await?;
        *self = Self::default();
        Ok(())
    }
}

/// The tunnels in a piece.
pub fn decode_piece(frame: HandoverFrame) -> Result<Vec<ReceivedTunnel>, ChannelError> {
    let body = frame.body;
    let mut sockets = frame.descriptors.into_iter();
    let mut rest = &body[..];
    let mut arrivals = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk().ok_or(ChannelError::BrokenPiece)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (bytes, behind) = behind.split_at_checked(length).ok_or(ChannelError::BrokenPiece)?;
        let (Some(client), Some(node)) = (sockets.next(), sockets.next()) else {
            return Err(ChannelError::BrokenPiece);
        };
        arrivals.push(ReceivedTunnel { state: Zeroizing::new(bytes.to_vec()), sockets: [client, node] });
        rest = behind;
    }
    if sockets.next().is_some() { Err(ChannelError::BrokenPiece) } else { Ok(arrivals) }
}

/// Borrows descriptors, to be sent.
pub(super) fn borrow_all(descriptors: &[OwnedFd]) -> Vec<std::os::fd::BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}
