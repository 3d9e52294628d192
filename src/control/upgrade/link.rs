//! The link with words: whole bodies, times, and what the other side says instead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::words::kind;
use crate::net::handover::{Frame, Link, LinkFault, MOST_DESCRIPTORS};
use crate::relay::{Arrival, Parcel};

/// The bytes of a piece of a batch, at most about.
const PIECE: usize = 1 << 20;

/// Why the other side is not understood.
#[derive(Debug, thiserror::Error)]
pub enum TalkFault {
    /// The socket.
    #[error(transparent)]
    Link(#[from] LinkFault),
    /// It says what is in its way.
    #[error("{0}")]
    Told(String),
    /// It has closed the socket.
    #[error("the other process has ended")]
    Ended,
    /// It says nothing.
    #[error("the other process has not answered within {0:?}")]
    Late(Duration),
    /// It says something else.
    #[error("the other process says something that this version does not know ({0})")]
    Strange(u8),
    /// What it says cannot be read.
    #[error("the other process is not understood: {0}")]
    Unread(#[from] serde_json::Error),
    /// A piece of a batch is cut or has too few sockets.
    #[error("a piece of a batch is broken")]
    Piece,
}

impl TalkFault {
    /// The other side is there no more.
    pub fn is_end(&self) -> bool {
        let is_broken = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        match self {
            Self::Ended => true,
            Self::Link(LinkFault::Io(error)) => is_broken(error),
            _ => false,
        }
    }
}

/// Sends words.
pub async fn say(link: &mut Link, kind: u8, words: &impl Serialize) -> Result<(), TalkFault> {
    Ok(link.send(kind, &serde_json::to_vec(words)?, &[]).await?)
}

/// Waits for a frame of this kind.
pub async fn expect(link: &mut Link, kind: u8, within: Duration) -> Result<Frame, TalkFault> {
    let frame = timeout(within, link.receive()).await.map_err(|_| TalkFault::Late(within))?;
    match frame? {
        Some(frame) if frame.kind == kind => Ok(frame),
        Some(frame) if frame.kind == kind::FAULT => {
            Err(TalkFault::Told(String::from_utf8_lossy(&frame.body).into_owned()))
        }
        Some(frame) => Err(TalkFault::Strange(frame.kind)),
        None => Err(TalkFault::Ended),
    }
}

/// Reads words.
pub fn read<T: DeserializeOwned>(frame: &Frame) -> Result<T, TalkFault> {
    Ok(serde_json::from_slice(&frame.body)?)
}

/// Sends a batch: pieces, and that it is whole.
pub async fn send_batch<'a>(
    link: &mut Link,
    parcels: impl Iterator<Item = &'a Parcel>,
) -> Result<(), TalkFault> {
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

/// Parcels that travel in one frame: length and bytes of each. It holds keys, and is wiped.
#[derive(Default)]
struct Piece<'a> {
    body: Zeroizing<Vec<u8>>,
    parcels: Vec<&'a Parcel>,
}

impl<'a> Piece<'a> {
    fn is_full(&self, parcel: &Parcel) -> bool {
        let too_many = 2 * (self.parcels.len() + 1) > MOST_DESCRIPTORS;
        too_many || (!self.body.is_empty() && self.body.len() + parcel.bytes().len() > PIECE)
    }

    fn add(&mut self, parcel: &'a Parcel) {
        // At most `parcel::MOST`, some MiB.
        let length = parcel.bytes().len() as u32;
        let needed = self.body.len() + 4 + parcel.bytes().len();
        if self.body.capacity() < needed {
            // A vector that grows leaves what it had where it was, so it does not.
            let mut body = Zeroizing::new(Vec::with_capacity(needed + PIECE / 8));
            body.extend_from_slice(&self.body);
            self.body = body;
        }
        self.body.extend_from_slice(&length.to_be_bytes());
        self.body.extend_from_slice(parcel.bytes());
        self.parcels.push(parcel);
    }

    async fn send(&mut self, link: &mut Link) -> Result<(), TalkFault> {
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
pub fn arrivals(frame: Frame) -> Result<Vec<Arrival>, TalkFault> {
    let body = frame.body;
    let mut sockets = frame.descriptors.into_iter();
    let mut rest = &body[..];
    let mut arrivals = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk().ok_or(TalkFault::Piece)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (bytes, behind) = behind.split_at_checked(length).ok_or(TalkFault::Piece)?;
        let (Some(client), Some(node)) = (sockets.next(), sockets.next()) else {
            return Err(TalkFault::Piece);
        };
        arrivals.push(Arrival { bytes: Zeroizing::new(bytes.to_vec()), sockets: [client, node] });
        rest = behind;
    }
    if sockets.next().is_some() { Err(TalkFault::Piece) } else { Ok(arrivals) }
}

/// Lends descriptors.
pub fn lent(descriptors: &[OwnedFd]) -> Vec<std::os::fd::BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}
