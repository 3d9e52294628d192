//! Receives batches of tunnels from the old process, as [`NewOwnership`] decides.

use std::collections::HashSet;
use std::sync::Arc;

use super::channel::{ChannelError, decode, decode_piece};
use super::control_state::ControlState;
use super::ownership::{NewAction, NewEvent, NewOwnership};
use super::protocol::kind;
use crate::control::Reload;
use crate::net::handover_socket::{HandoverError, HandoverFrame, HandoverSocket};
use crate::relay::tunnel_state::TunnelCounters;
use crate::relay::{ReceivedTunnel, StagedTunnels};
use crate::shutdown::Phase;

/// What is still to come from the old process.
pub(super) struct BatchReceiver {
    link: HandoverSocket,
    reload: Arc<Reload>,
    state: ControlState,
    ownership: NewOwnership,
    /// To be performed next.
    action: NewAction,
    /// The pieces of the batch that is being received.
    arrived: Vec<ReceivedTunnel>,
    /// The batch that is staged.
    staged: Option<StagedTunnels>,
    /// What came last and cannot be taken.
    error: Option<ChannelError>,
}

impl BatchReceiver {
    /// Nothing of a batch has come yet; what governs the tunnels has.
    pub(super) fn new(link: HandoverSocket, reload: &Arc<Reload>, state: ControlState) -> Self {
        Self {
            link,
            reload: Arc::clone(reload),
            state,
            ownership: NewOwnership::new(),
            action: NewAction::Receive,
            arrived: Vec::new(),
            staged: None,
            error: None,
        }
    }

    /// Returns when this process is to accept clients; then [`serves`](Self::serves).
    ///
    /// # Errors
    ///
    /// A batch was refused: the old process goes on.
    pub(super) async fn until_serving(&mut self) -> Result<(), ChannelError> {
        self.run().await
    }

    /// This process accepts clients.
    pub(super) fn serves(&mut self) {
        self.action = self.ownership.on(NewEvent::Serving);
    }

    /// Receives everything else.
    pub(super) async fn finish(mut self) {
        let shutdown = self.reload.front().shutdown.clone();
        tokio::select! {
            outcome = self.run() => if let Err(error) = outcome {
                tracing::error!(fault = %error, "what is left of the old process stays there");
            },
            () = shutdown.wait_for(Phase::Stopped) => {}
        }
        self.state.end();
        tracing::info!("the process before this one has ended");
    }

    /// Performs the actions until this process is to accept clients, or nothing comes any more.
    async fn run(&mut self) -> Result<(), ChannelError> {
        loop {
            let event = match self.action {
                NewAction::Receive => self.receive().await,
                NewAction::SayAlive => self.say(kind::PONG).await,
                NewAction::SayHeld => self.say(kind::HELD).await,
                NewAction::SayFreed => self.say(kind::FREED).await,
                NewAction::Carry => self.carry().await,
                NewAction::Discard => self.discard(),
                NewAction::Refuse => self.refuse().await,
                NewAction::Resume => self.resume(),
                NewAction::Serve => return Ok(()),
                NewAction::Finish => return self.error.take().map_or(Ok(()), Err),
            };
            self.action = self.ownership.on(event);
        }
    }

    async fn receive(&mut self) -> NewEvent {
        match self.link.receive().await {
            Ok(Some(frame)) => self.received(frame).unwrap_or_else(|error| self.unfit(error)),
            Ok(None) | Err(HandoverError::BrokenOff) => NewEvent::End,
            // A batch that is staged is decided by the end of the old process; its next word cannot be read any more.
            Err(_) if self.staged.is_some() => NewEvent::End,
            Err(error) => self.unfit(error.into()),
        }
    }

    fn received(&mut self, frame: HandoverFrame) -> Result<NewEvent, ChannelError> {
        Ok(match frame.kind {
            kind::PING => NewEvent::Pinged,
            kind::PIECE => {
                self.arrived.extend(decode_piece(frame)?);
                NewEvent::Piece
            }
            kind::WHOLE => self.hold()?,
            kind::GO => NewEvent::Go,
            kind::REVOKE => NewEvent::Revoked,
            kind::SETTLED => NewEvent::Settled,
            kind::FINAL => {
                self.state.finish(decode(&frame)?);
                NewEvent::LastWord
            }
            other => return Err(ChannelError::UnexpectedFrame(other)),
        })
    }

    fn hold(&mut self) -> Result<NewEvent, ChannelError> {
        let front = Arc::clone(self.reload.front());
        let counts = TunnelCounters { metrics: &front.metrics, limiter: &front.admission.connections };
        let staged = StagedTunnels::new(std::mem::take(&mut self.arrived), counts);
        self.staged = Some(staged.map_err(|error| ChannelError::Refused(error.to_string()))?);
        Ok(NewEvent::Whole)
    }

    fn unfit(&mut self, error: ChannelError) -> NewEvent {
        self.error = Some(error);
        NewEvent::Unfit
    }

    /// Where this does not get through, the old process is dead or will kill this one: that is read next.
    async fn say(&mut self, kind: u8) -> NewEvent {
        let _ = self.link.send(kind, &[], &[]).await;
        NewEvent::Said
    }

    async fn carry(&mut self) -> NewEvent {
        if let Some(staged) = self.staged.take() {
            let origins: HashSet<_> = staged.labels().collect();
            self.reload.front().relay.activate(staged);
            self.state.close_orphans(origins).await;
        }
        NewEvent::Carried
    }

    fn discard(&mut self) -> NewEvent {
        (self.arrived, self.staged) = (Vec::new(), None);
        NewEvent::Discarded
    }

    async fn refuse(&mut self) -> NewEvent {
        self.discard();
        let error = self.error.get_or_insert(ChannelError::OutOfOrder).to_string();
        let _ = self.link.send(kind::FAULT, error.as_bytes(), &[]).await;
        NewEvent::Said
    }

    fn resume(&mut self) -> NewEvent {
        self.state.settle();
        NewEvent::Resumed
    }
}
