//! The socket between a process and the one that takes over from it: whole frames with descriptors, both ways.
//!
//! A frame is a kind, a body and at most `MAX_DESCRIPTORS` descriptors (SCM_RIGHTS, unix(7)). What a frame means is
//! not known here. The socket is one of a pair, so it has no name that anybody else could open; the other end is the
//! standard input of the child, so the child inherits exactly this. Both ends say whether their peer is the process
//! that it should be (SO_PEERCRED).
//!
//! A body may hold live TLS keys: what came is in buffers that are wiped before they are freed, is never printed, and
//! whoever takes over leaves no core dumps from before the first byte of it is read.
//!
//! Descriptors that there is no room for are lost with their frame: the kernel closes them, and that is a fault here
//! ([`HandoverError::NoDescriptors`]), never a shorter list.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::tls;

/// The most descriptors of a frame: what the kernel takes in one message (SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
/// The most bytes of a body.
pub(crate) const MAX_BODY: usize = 64 << 20;
/// Kind, count of descriptors, length of the body.
const HEADER: usize = 1 + 2 + 4;
/// What one read may bring.
const READ_SIZE: usize = 64 << 10;
/// From one try to the next where too many descriptors are on their way already.
const RETRY_DELAY: Duration = Duration::from_millis(1);
/// Tries before that is a fault: the other side reads, or it never will.
const MAX_TRIES: u32 = 2_000;

/// One end of the socket between two processes.
#[derive(Debug)]
pub struct HandoverSocket {
    socket: UnixStream,
    /// Bytes that came and are no whole frame yet.
    read: ReceiveBuffer,
    /// Descriptors that came; those of the next frame are in front.
    descriptors: VecDeque<OwnedFd>,
}

/// What is sent at once.
pub struct HandoverFrame {
    /// What it is.
    pub kind: u8,
    /// At most `MAX_BODY` bytes.
    pub body: Zeroizing<Vec<u8>>,
    /// Close-on-exec each.
    pub descriptors: Vec<OwnedFd>,
}

impl fmt::Debug for HandoverFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, count) = (self.body.len(), self.descriptors.len());
        write!(f, "Frame({}, {len} bytes hidden, {count} descriptors)", self.kind)
    }
}

/// Why a frame did not get through.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket fails.
    #[error("the socket between the two processes fails: {0}")]
    Io(#[from] io::Error),
    /// The other side closed it within a frame.
    #[error("the other process broke off in the middle of a frame")]
    BrokenOff,
    /// A frame that no peer of ours sends.
    #[error("a frame of {0} bytes with {1} descriptors is more than one may have")]
    TooLarge(usize, usize),
    /// The descriptors of a frame did not all get through.
    #[error("no file descriptor is left for what the other process hands over")]
    NoDescriptors,
}

impl HandoverSocket {
    /// A pair: this process's end, and the one for the standard input of a child. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        Ok((Self::from_fd(ours)?, theirs))
    }

    /// The link on a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// It cannot be polled.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        Ok(Self { socket, read: ReceiveBuffer::default(), descriptors: VecDeque::new() })
    }

    /// Sends a frame. One whose sending is given up half-way leaves the socket unusable.
    ///
    /// # Errors
    ///
    /// See [`HandoverError`]; nobody reads at the other end any more.
    pub(crate) async fn send(
        &mut self,
        kind: u8,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        if body.len() > MAX_BODY || descriptors.len() > MAX_DESCRIPTORS {
            return Err(HandoverError::TooLarge(body.len(), descriptors.len()));
        }
        let header = encode_header(kind, body.len(), descriptors.len());
        let (mut sent, mut tries) = (0, MAX_TRIES);
        while sent < HEADER + body.len() {
            let attached = if sent == 0 { descriptors } else { &[] };
            let parts = [&header[sent.min(HEADER)..], &body[sent.saturating_sub(HEADER)..]];
            let part =
                self.socket.async_io(Interest::WRITABLE, || send_part(&self.socket, parts, attached)).await;
            match part {
                Ok(len) => sent += len,
                // Until the other side has read some of those that are on their way.
                Err(error) if is_too_many_in_flight(&error) && tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next frame; `None` once the other side has closed. Safe to drop and to call again.
    ///
    /// # Errors
    ///
    /// See [`HandoverError`].
    pub async fn receive(&mut self) -> Result<Option<HandoverFrame>, HandoverError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            let (socket, read, descriptors) = (&self.socket, &mut self.read, &mut self.descriptors);
            let pulled =
                socket.async_io(Interest::READABLE, || receive_part(socket, read, descriptors)).await;
            match pulled {
                Ok(ReceiveProgress::Received) => {}
                Ok(ReceiveProgress::End) if self.read.bytes().is_empty() => return Ok(None),
                Ok(ReceiveProgress::End) => return Err(HandoverError::BrokenOff),
                Ok(ReceiveProgress::Truncated) => return Err(HandoverError::NoDescriptors),
                // The other side is gone, with bytes of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a frame out of what has come, when all of it has.
    fn take_frame(&mut self) -> Result<Option<HandoverFrame>, HandoverError> {
        let Some((header, rest)) = self.read.bytes().split_at_checked(HEADER) else { return Ok(None) };
        let count = usize::from(u16::from_be_bytes([header[1], header[2]]));
        let len = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
        if len > MAX_BODY || count > MAX_DESCRIPTORS {
            return Err(HandoverError::TooLarge(len, count));
        }
        if rest.len() < len {
            self.read.wanted = HEADER + len;
            return Ok(None);
        }
        if self.descriptors.len() < count {
            // They come with the first byte of their frame, or never.
            return Err(HandoverError::NoDescriptors);
        }
        let (kind, body) = (header[0], Zeroizing::new(rest[..len].to_vec()));
        self.read.consume(HEADER + len);
        Ok(Some(HandoverFrame { kind, body, descriptors: self.descriptors.drain(..count).collect() }))
    }
}

/// What came and is not taken yet. A vector that grows, or moves up what is left, would leave keys where they were, so
/// this one does neither: it is copied to another one, and wiped.
#[derive(Default)]
struct ReceiveBuffer {
    buffer: Zeroizing<Vec<u8>>,
    /// Bytes that the frame which has begun will have, as far as is known.
    wanted: usize,
}

impl ReceiveBuffer {
    fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Room for a read behind what is there: the part of the buffer from the returned length on.
    fn reserve(&mut self) -> (usize, &mut Vec<u8>) {
        let len = self.buffer.len();
        if self.buffer.capacity() < len + READ_SIZE {
            self.reallocate(0, self.wanted.max(len) + READ_SIZE);
        }
        self.buffer.resize(len + READ_SIZE, 0);
        (len, &mut self.buffer)
    }

    /// The first `taken` bytes are taken.
    fn consume(&mut self, taken: usize) {
        let left = self.buffer.len() - taken;
        self.wanted = 0;
        self.reallocate(taken, left);
    }

    fn reallocate(&mut self, from: usize, capacity: usize) {
        let mut next = Zeroizing::new(Vec::with_capacity(capacity));
        next.extend_from_slice(&self.buffer[from..]);
        self.buffer = next;
    }
}

impl fmt::Debug for ReceiveBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes hidden)", self.buffer.len())
    }
}

/// What a read came to.
enum ReceiveProgress {
    Received,
    End,
    /// The kernel had descriptors and no room for them in this process.
    Truncated,
}

/// A frame of words alone, for a process that has no runtime yet.
pub fn encode_frame(kind: u8, words: &str) -> Vec<u8> {
    let words = &words.as_bytes()[..words.len().min(MAX_BODY)];
    [&encode_header(kind, words.len(), 0)[..], words].concat()
}

fn encode_header(kind: u8, len: usize, count: usize) -> [u8; HEADER] {
    let (len, count) = ((len as u32).to_be_bytes(), (count as u16).to_be_bytes());
    [kind, count[0], count[1], len[0], len[1], len[2], len[3]]
}

fn send_part(socket: &UnixStream, parts: [&[u8]; 2], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let is_in = control.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(is_in, "there is room for the most");
    }
    let parts = parts.map(IoSlice::new);
    Ok(sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_part(
    socket: &UnixStream,
    read: &mut ReceiveBuffer,
    into: &mut VecDeque<OwnedFd>,
) -> io::Result<ReceiveProgress> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (before, read) = read.reserve();
    let parts = &mut [IoSliceMut::new(&mut read[before..])];
    let received = recvmsg(socket.as_fd(), parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    read.truncate(before + received.as_ref().map_or(0, |received| received.bytes));
    let received = received?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            into.extend(descriptors);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(ReceiveProgress::Truncated);
    }
    Ok(if received.bytes == 0 { ReceiveProgress::End } else { ReceiveProgress::Received })
}

/// More descriptors of this user are on their way than one process may have open (unix(7), ETOOMANYREFS).
fn is_too_many_in_flight(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

/// Takes the socket that a parent has put in the place of the standard input, which is `/dev/null` from then on. The
/// parent's keys may come over it, whatever this process's own config says: from here on it leaves no core dumps.
/// `None` where there is no socket of the process `parent`, run by the same user.
///
/// # Errors
///
/// No descriptor is left.
pub(crate) fn take_parent_socket(parent: u32) -> io::Result<Option<OwnedFd>> {
    let stdin = io::stdin();
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stdin.as_fd()) else { return Ok(None) };
    let is_parent = u32::try_from(peer.pid.as_raw_nonzero().get()) == Ok(parent);
    if !is_parent || peer.uid != rustix::process::geteuid() {
        return Ok(None);
    }
    tls::disable_core_dumps();
    let socket = stdin.as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(Some(socket))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn both() -> (HandoverSocket, HandoverSocket) {
        let (ours, theirs) = HandoverSocket::pair().unwrap();
        (ours, HandoverSocket::from_fd(theirs).unwrap())
    }

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    fn text(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        File::from(descriptor).read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn frames_come_whole_and_in_order_with_their_own_descriptors() {
        let (mut ours, mut theirs) = both();
        let files: Vec<File> = (0..600).map(|index| file(&index.to_string())).collect();
        let sending = async {
            for (index, some) in files.chunks(2).enumerate() {
                let descriptors: Vec<_> = some.iter().map(AsFd::as_fd).collect();
                ours.send(7, &vec![index as u8; index], &descriptors).await.unwrap();
                // Frames without any are no place where another's could be lost.
                ours.send(8, b"", &[]).await.unwrap();
            }
        };
        let receiving = async {
            for index in 0..300 {
                let frame = theirs.receive().await.unwrap().unwrap();
                assert_eq!((frame.kind, &frame.body[..]), (7, &vec![index as u8; index][..]));
                let texts: Vec<String> = frame.descriptors.into_iter().map(text).collect();
                assert_eq!(texts, [(2 * index).to_string(), (2 * index + 1).to_string()]);
                let frame = theirs.receive().await.unwrap().unwrap();
                assert_eq!((frame.kind, frame.body.len(), frame.descriptors.len()), (8, 0, 0));
            }
        };
        tokio::join!(sending, receiving);
        drop(ours);
        assert!(theirs.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_body_larger_than_the_sockets_buffer_gets_through_with_the_most_descriptors() {
        let (mut ours, mut theirs) = both();
        let one = file("x");
        let (body, descriptors) = (vec![5; 3 << 20], vec![one.as_fd(); MAX_DESCRIPTORS]);
        let (sent, received) = tokio::join!(ours.send(1, &body, &descriptors), theirs.receive());
        sent.unwrap();
        let frame = received.unwrap().unwrap();
        assert!(*frame.body == body);
        assert_eq!(frame.descriptors.len(), MAX_DESCRIPTORS);
        let flags = rustix::io::fcntl_getfd(&frame.descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child inherits it");
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_sent_and_not_read() {
        let (mut ours, mut theirs) = both();
        let one = file("x");
        let many = vec![one.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(ours.send(1, b"", &many).await, Err(HandoverError::TooLarge(0, 254))));
        let huge = encode_header(1, MAX_BODY + 1, 0);
        ours.socket
            .async_io(Interest::WRITABLE, || send_part(&ours.socket, [&huge, b""], &[]))
            .await
            .unwrap();
        assert!(matches!(theirs.receive().await, Err(HandoverError::TooLarge(..))));
    }

    #[tokio::test]
    async fn the_end_within_a_frame_is_a_fault_and_between_two_it_is_none() {
        let (mut ours, mut theirs) = both();
        ours.send(1, b"whole", &[]).await.unwrap();
        let part = encode_header(2, 10, 0);
        ours.socket
            .async_io(Interest::WRITABLE, || send_part(&ours.socket, [&part, b"half"], &[]))
            .await
            .unwrap();
        drop(ours);
        assert_eq!(theirs.receive().await.unwrap().unwrap().body[..], b"whole"[..]);
        assert!(matches!(theirs.receive().await, Err(HandoverError::BrokenOff)));
    }

    #[tokio::test]
    async fn a_frame_that_says_more_descriptors_than_came_is_a_fault() {
        let (ours, mut theirs) = both();
        let lie = encode_header(1, 0, 2);
        ours.socket.async_io(Interest::WRITABLE, || send_part(&ours.socket, [&lie, b""], &[])).await.unwrap();
        assert!(matches!(theirs.receive().await, Err(HandoverError::NoDescriptors)));
    }

    #[tokio::test]
    async fn who_sends_to_nobody_hears_of_it() {
        let (mut ours, theirs) = both();
        drop(theirs);
        assert!(matches!(ours.send(1, b"x", &[]).await, Err(HandoverError::Io(_))));
        assert!(ours.receive().await.unwrap().is_none());
    }
}
