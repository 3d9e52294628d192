//! One connection, from its 101 to its end.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tracing::debug;
use yawc::close::CloseCode;
use yawc::{Frame, HttpWebSocket, OpCode, UpgradeFut};

use crate::auth::Identity;
use crate::limits::{AT_CAPACITY, ClientRateLimiter, TOO_MANY_MESSAGES};
use crate::metrics::{ForcedCloseReason, RefusalReason};
use socketio_redis::value::Value;

use super::client::WsJsonClient;
use super::context::WsJsonContext;
use super::message::{self, RequestMessage};
use super::outbox::{Outbox, OutboxEnd, OutboxStep};

/// How long a Close waits for its answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection ends.
enum ConnectionEnd {
    /// The client left, or its connection broke.
    Gone,
    /// The client broke the protocol; it has been told.
    Broken,
    /// The node closes it.
    Closed(CloseCode, &'static str, ForcedCloseReason),
    /// It cannot be told anything.
    Cut(ForcedCloseReason),
}

/// Carries one connection to its end.
pub(super) async fn run(
    context: Arc<WsJsonContext>,
    upgrade: UpgradeFut,
    identity: Identity,
    handshake: Value,
) {
    let Ok(mut socket) = upgrade.await else {
        return; // The client left before it read the 101.
    };
    let Some(_seat) = context.settings.limiter.try_acquire() else {
        context.settings.metrics.count_refusal(RefusalReason::Capacity);
        return close(&mut socket, CloseCode::Policy, AT_CAPACITY).await;
    };
    let client = Arc::new(WsJsonClient {
        id: new_id().into(),
        identity,
        handshake,
        outbox: Outbox::new(context.settings.backlog),
    });
    let key = context.next.fetch_add(1, Ordering::Relaxed);
    context.open.lock().insert(key, Arc::clone(&client));
    let user = client.identity.user.as_ref().map(|user| user.as_str());
    client.outbox.send(&message::welcome(&client.id, &context.settings.node, user).into());
    context.handler.connected(&client);
    if context.is_stopping.load(Ordering::Relaxed) {
        // Its upgrade was on its way when the closing began.
        client.outbox.end(OutboxEnd::Restart);
    }
    let ended = Conversation::new(&context, &client, &mut socket).run().await;
    context.open.lock().remove(&key);
    context.handler.disconnected(&client);
    match ended {
        ConnectionEnd::Gone => {}
        ConnectionEnd::Broken => context.settings.metrics.count_forced_close(ForcedCloseReason::Broken),
        ConnectionEnd::Cut(why) => context.settings.metrics.count_forced_close(why),
        ConnectionEnd::Closed(code, words, why) => {
            context.settings.metrics.count_forced_close(why);
            close(&mut socket, code, words).await;
        }
    }
}

/// 20 characters of base64url, as a Socket.IO id has; 120 bits of chance.
fn new_id() -> String {
    let mut chance = [0_u8; 15];
    aws_lc_rs::rand::fill(&mut chance).expect("the system gives random bytes");
    URL_SAFE_NO_PAD.encode(chance)
}

/// Sends a Close and waits for the client's, so that the kernel does not reset what is on its way.
async fn close(socket: &mut HttpWebSocket, code: CloseCode, words: &str) {
    let closing = async {
        if socket.send(Frame::close(code, words)).await.is_ok() {
            while socket.next_frame().await.is_ok() {}
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

/// What one client says and is told.
struct Conversation<'a> {
    context: &'a WsJsonContext,
    client: &'a Arc<WsJsonClient>,
    socket: &'a mut HttpWebSocket,
    rate_limiter: Option<Box<ClientRateLimiter>>,
    /// When something came last.
    last_received: Instant,
}

impl<'a> Conversation<'a> {
    fn new(context: &'a WsJsonContext, client: &'a Arc<WsJsonClient>, socket: &'a mut HttpWebSocket) -> Self {
        Self {
            context,
            client,
            socket,
            rate_limiter: context.settings.rates.limiter(),
            last_received: Instant::now(),
        }
    }

    async fn run(mut self) -> ConnectionEnd {
        let expiry = wait_until_expired(self.client.identity.expires);
        tokio::pin!(expiry);
        let every = self.context.settings.ping_interval;
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                biased;
                () = &mut expiry => Err(ConnectionEnd::Closed(CloseCode::Policy, "token expired", ForcedCloseReason::Expired)),
                next = self.client.outbox.next() => self.write(next).await,
                frame = self.socket.next_frame() => match frame {
                    Ok(frame) => self.receive(frame).await,
                    Err(error) => Err(self.close_for_error(&error).await),
                },
                _ = beat.tick() => self.ping().await,
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Writes what waits, as much as there is, and then sees that it goes out.
    async fn write(&mut self, first: OutboxStep) -> Result<(), ConnectionEnd> {
        let mut next = Some(first);
        while let Some(OutboxStep::Message(message)) = next {
            self.feed(Frame::text(message)).await?;
            next = self.client.outbox.try_next();
        }
        self.flush().await?;
        match next {
            Some(OutboxStep::End(OutboxEnd::Slow)) => Err(ConnectionEnd::Cut(ForcedCloseReason::Slow)),
            Some(OutboxStep::End(OutboxEnd::Restart)) => {
                Err(ConnectionEnd::Closed(CloseCode::Restart, "service restart", ForcedCloseReason::Shutdown))
            }
            Some(OutboxStep::End(OutboxEnd::Policy(words))) => {
                Err(ConnectionEnd::Closed(CloseCode::Policy, words, ForcedCloseReason::Application))
            }
            Some(OutboxStep::Message(_)) | None => Ok(()),
        }
    }

    async fn feed(&mut self, frame: Frame) -> Result<(), ConnectionEnd> {
        let limit = self.context.settings.idle;
        tokio::select! {
            fed = timeout(limit, self.socket.feed(frame)) => write_result(fed),
            () = self.client.outbox.wait_until_cut() => Err(ConnectionEnd::Cut(ForcedCloseReason::Slow)),
        }
    }

    async fn flush(&mut self) -> Result<(), ConnectionEnd> {
        let limit = self.context.settings.idle;
        tokio::select! {
            flushed = timeout(limit, self.socket.flush()) => write_result(flushed),
            () = self.client.outbox.wait_until_cut() => Err(ConnectionEnd::Cut(ForcedCloseReason::Slow)),
        }
    }

    async fn ping(&mut self) -> Result<(), ConnectionEnd> {
        let silent = self.last_received.elapsed();
        let limits = &self.context.settings;
        if silent >= limits.idle || silent >= limits.ping_interval + limits.ping_timeout {
            return Err(ConnectionEnd::Closed(CloseCode::Away, "no sign of life", ForcedCloseReason::Idle));
        }
        self.feed(Frame::ping(Bytes::new())).await?;
        self.flush().await
    }

    /// One frame of the client; the library has answered a ping and a close already.
    async fn receive(&mut self, frame: Frame) -> Result<(), ConnectionEnd> {
        self.last_received = Instant::now();
        match frame.opcode() {
            OpCode::Text => {}
            OpCode::Binary => {
                return Err(ConnectionEnd::Closed(
                    CloseCode::Unsupported,
                    "messages are text",
                    ForcedCloseReason::Broken,
                ));
            }
            OpCode::Close => {
                // The answer goes out with the next reading, which ends with the connection.
                let _ = timeout(CLOSE_TIMEOUT, self.socket.next_frame()).await;
                return Err(ConnectionEnd::Gone);
            }
            OpCode::Ping | OpCode::Pong | OpCode::Continuation => return Ok(()),
        }
        self.context.settings.metrics.messages_in.inc();
        if self.rate_limiter.as_mut().is_some_and(|allowance| !allowance.allows(frame.payload().len())) {
            return Err(ConnectionEnd::Closed(CloseCode::Policy, TOO_MANY_MESSAGES, ForcedCloseReason::Rate));
        }
        let answer = answer_request(self.context, self.client, frame.as_str()).await;
        // Not taken: the outbox says with what the connection ends.
        self.client.outbox.send(&answer.into());
        Ok(())
    }

    /// A fault of the connection. Where the client broke the protocol, the library has a Close ready that tells it why,
    /// and the next reading sends it.
    async fn close_for_error(&mut self, error: &yawc::WebSocketError) -> ConnectionEnd {
        if error.is_closed() || error.is_io_error() {
            return ConnectionEnd::Gone;
        }
        debug!(%error, "websocket protocol error");
        let _ = timeout(CLOSE_TIMEOUT, self.socket.next_frame()).await;
        ConnectionEnd::Broken
    }
}

/// The answer to one text message.
async fn answer_request(context: &WsJsonContext, client: &Arc<WsJsonClient>, text: &str) -> String {
    let RequestMessage { id, word, fields } = match RequestMessage::read(text) {
        Ok(request) => request,
        Err(error) => return message::error(error.id, &error.words),
    };
    match context.handler.request(client, &word, &fields).await {
        Ok(facts) => message::ok(id, &word, facts),
        Err(words) => message::error(id, &words),
    }
}

/// A write that did not end in time is one to a client that is not there any more.
fn write_result<E>(written: Result<Result<(), E>, tokio::time::error::Elapsed>) -> Result<(), ConnectionEnd> {
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ConnectionEnd::Gone),
        Err(_) => Err(ConnectionEnd::Cut(ForcedCloseReason::Idle)),
    }
}

/// Ends when a token does.
async fn wait_until_expired(end: Option<SystemTime>) {
    match end {
        // A time in the past has no distance: at once.
        Some(end) => sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await,
        None => pending().await,
    }
}
