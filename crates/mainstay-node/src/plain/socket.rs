//! One plain client, from its 101 to its end.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tracing::debug;
use yawc::close::CloseCode;
use yawc::{Frame, HttpWebSocket, OpCode, UpgradeFut};

use crate::auth::Identity;
use crate::limits::{AT_CAPACITY, Allowance, TOO_MUCH};
use crate::metrics::{Cut, Refused};
use crate::value::Value;

use super::message::{self, Asked};
use super::outbox::{End, Next, Outbox};
use super::{Client, FAREWELL, Shared};

/// Why a connection ends.
enum Ended {
    /// The client left, or its connection broke.
    Gone,
    /// The client broke the protocol; it has been told.
    Broken,
    /// The node closes it.
    Closed(CloseCode, &'static str, Cut),
    /// It cannot be told anything.
    Cut(Cut),
}

/// The life of one connection.
pub(super) async fn converse(
    shared: Arc<Shared>,
    upgrade: UpgradeFut,
    (identity, handshake): (Identity, Value),
) {
    let Ok(mut socket) = upgrade.await else {
        return; // The client left before it read the 101.
    };
    let Some(_seat) = shared.seats.take() else {
        shared.metrics.refused(Refused::Capacity);
        return part(&mut socket, CloseCode::Policy, AT_CAPACITY).await;
    };
    let client = Arc::new(Client {
        id: id().into(),
        identity,
        handshake,
        outbox: Outbox::new(shared.clients.backlog),
    });
    let key = shared.next.fetch_add(1, Ordering::Relaxed);
    shared.open.lock().insert(key, Arc::clone(&client));
    let user = client.identity.user.as_ref().map(|user| user.as_str());
    client.outbox.send(&message::welcome(&client.id, &shared.node, user).into());
    shared.stage.arrived(&client);
    if shared.is_stopping.load(Ordering::Relaxed) {
        // Its upgrade was on its way when the closing began.
        client.outbox.end(End::Restart);
    }
    let ended = Talk::new(&shared, &client, &mut socket).run().await;
    shared.open.lock().remove(&key);
    shared.stage.left(&client);
    match ended {
        Ended::Gone => {}
        Ended::Broken => shared.metrics.cut(Cut::Broken),
        Ended::Cut(why) => shared.metrics.cut(why),
        Ended::Closed(code, words, why) => {
            shared.metrics.cut(why);
            part(&mut socket, code, words).await;
        }
    }
}

/// 20 characters of base64url, as a Socket.IO id has; 120 bits of chance.
fn id() -> String {
    let mut chance = [0_u8; 15];
    aws_lc_rs::rand::fill(&mut chance).expect("the system gives random bytes");
    URL_SAFE_NO_PAD.encode(chance)
}

/// Says good-bye and hears the client's, so that the kernel does not reset what is on its way.
async fn part(socket: &mut HttpWebSocket, code: CloseCode, words: &str) {
    let farewell = async {
        if socket.send(Frame::close(code, words)).await.is_ok() {
            while socket.next_frame().await.is_ok() {}
        }
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// The conversation of one client.
struct Talk<'a> {
    shared: &'a Shared,
    client: &'a Arc<Client>,
    socket: &'a mut HttpWebSocket,
    allowance: Option<Box<Allowance>>,
    /// When something came last.
    heard: Instant,
}

impl<'a> Talk<'a> {
    fn new(shared: &'a Shared, client: &'a Arc<Client>, socket: &'a mut HttpWebSocket) -> Self {
        Self { shared, client, socket, allowance: shared.rates().allowance(), heard: Instant::now() }
    }

    async fn run(mut self) -> Ended {
        let expiry = expiry(self.client.identity.expires);
        tokio::pin!(expiry);
        let every = self.shared.clients.ping_interval;
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                biased;
                () = &mut expiry => Err(Ended::Closed(CloseCode::Policy, "token expired", Cut::Expired)),
                next = self.client.outbox.next() => self.write(next).await,
                frame = self.socket.next_frame() => match frame {
                    Ok(frame) => self.hear(frame).await,
                    Err(error) => Err(self.fault(&error).await),
                },
                _ = beat.tick() => self.ping().await,
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Writes what waits, as much as there is, and then sees that it goes out.
    async fn write(&mut self, first: Next) -> Result<(), Ended> {
        let mut next = Some(first);
        while let Some(Next::Message(message)) = next {
            self.feed(Frame::text(message)).await?;
            next = self.client.outbox.ready();
        }
        self.flush().await?;
        match next {
            Some(Next::End(End::Slow)) => Err(Ended::Cut(Cut::Slow)),
            Some(Next::End(End::Restart)) => {
                Err(Ended::Closed(CloseCode::Restart, "service restart", Cut::Shutdown))
            }
            Some(Next::End(End::Policy(words))) => {
                Err(Ended::Closed(CloseCode::Policy, words, Cut::Application))
            }
            Some(Next::Message(_)) | None => Ok(()),
        }
    }

    async fn feed(&mut self, frame: Frame) -> Result<(), Ended> {
        let limit = self.shared.clients.idle;
        tokio::select! {
            fed = timeout(limit, self.socket.feed(frame)) => stuck(fed),
            () = self.client.outbox.cut() => Err(Ended::Cut(Cut::Slow)),
        }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let limit = self.shared.clients.idle;
        tokio::select! {
            flushed = timeout(limit, self.socket.flush()) => stuck(flushed),
            () = self.client.outbox.cut() => Err(Ended::Cut(Cut::Slow)),
        }
    }

    async fn ping(&mut self) -> Result<(), Ended> {
        let silent = self.heard.elapsed();
        let limits = &self.shared.clients;
        if silent >= limits.idle || silent >= limits.ping_interval + limits.ping_timeout {
            return Err(Ended::Closed(CloseCode::Away, "no sign of life", Cut::Idle));
        }
        self.feed(Frame::ping(Bytes::new())).await?;
        self.flush().await
    }

    /// One frame of the client; the library has answered a ping and a close already.
    async fn hear(&mut self, frame: Frame) -> Result<(), Ended> {
        self.heard = Instant::now();
        match frame.opcode() {
            OpCode::Text => {}
            OpCode::Binary => {
                return Err(Ended::Closed(CloseCode::Unsupported, "messages are text", Cut::Broken));
            }
            OpCode::Close => {
                // The answer goes out with the next reading, which ends with the connection.
                let _ = timeout(FAREWELL, self.socket.next_frame()).await;
                return Err(Ended::Gone);
            }
            OpCode::Ping | OpCode::Pong | OpCode::Continuation => return Ok(()),
        }
        self.shared.metrics.messages_in.inc();
        if self.allowance.as_mut().is_some_and(|allowance| !allowance.allows(frame.payload().len())) {
            return Err(Ended::Closed(CloseCode::Policy, TOO_MUCH, Cut::Rate));
        }
        let answer = answer(self.shared, self.client, frame.as_str()).await;
        // Not taken: the outbox says with what the connection ends.
        self.client.outbox.send(&answer.into());
        Ok(())
    }

    /// A fault of the connection. Where the client broke the protocol, the library has a Close ready that tells it why,
    /// and the next reading sends it.
    async fn fault(&mut self, error: &yawc::WebSocketError) -> Ended {
        if error.is_closed() || error.is_io_error() {
            return Ended::Gone;
        }
        debug!(%error, "a plain client broke the protocol");
        let _ = timeout(FAREWELL, self.socket.next_frame()).await;
        Ended::Broken
    }
}

/// The answer to one text message.
async fn answer(shared: &Shared, client: &Arc<Client>, text: &str) -> String {
    let Asked { id, word, request } = match Asked::read(text) {
        Ok(asked) => asked,
        Err(fault) => return message::error(fault.id, &fault.words),
    };
    match shared.stage.asked(client, request).await {
        Ok(facts) => message::ok(id, &word, facts),
        Err(words) => message::error(id, &words),
    }
}

/// A write that did not end in time is one to a client that is not there any more.
fn stuck<E>(written: Result<Result<(), E>, tokio::time::error::Elapsed>) -> Result<(), Ended> {
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Gone),
        Err(_) => Err(Ended::Cut(Cut::Idle)),
    }
}

/// Ends when a token does.
async fn expiry(end: Option<SystemTime>) {
    match end {
        // A time in the past has no distance: at once.
        Some(end) => sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await,
        None => pending().await,
    }
}
